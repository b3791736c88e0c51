"""The decorator of kernel operations, and that every operation's kernel is where it says."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rqat_kernels.decode
import rqat_kernels.gptq_block
import rqat_kernels.grid
import rqat_kernels.hessian
import rqat_kernels.latent_adam
import rqat_kernels.linear_kl
import rqat_kernels.packed_linear  # noqa: F401
from rqat_kernels import dispatch
from rqat_kernels import op as module
from rqat_kernels.dispatch import has_triton
from rqat_kernels.op import op

numbers = itertools.count()


def made(definition: Callable[..., Any], **settings: Any) -> tuple[Callable[..., Any], Any]:
    """The definition as an operation under a new name, and torch's operation itself."""
    name = f"made_{next(numbers)}"
    settings = {"fake": lambda x, *_: torch.empty_like(x)} | settings
    return op(f"rqat_test::{name}", **settings)(definition), getattr(torch.ops.rqat_test, name)


def scaled(x: Tensor, by: float = 2.0, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Times `by`."""
    return (x * by).to(dtype)


def test_signature_and_docstring_are_those_of_the_definition() -> None:
    entry, _ = made(scaled)
    assert inspect.signature(entry) == inspect.signature(scaled)
    assert entry.__doc__ == scaled.__doc__


@pytest.mark.parametrize("plain", [True, False])
def test_defaults_and_names_are_the_definitions_too(plain: bool) -> None:
    entry, operation = made(scaled, plain=plain)
    x = torch.arange(3.0)
    for got in (entry(x), entry(x=x), entry(x, 2.0), entry(x, by=2.0, dtype=torch.float32)):
        assert torch.equal(got, 2 * x)
    assert entry(x, 3.0, dtype=torch.float64).dtype == torch.float64
    assert torch.equal(operation(x, 3.0, torch.float32), 3 * x)
    torch.library.opcheck(operation.default, (x, 3.0, torch.float32))


class Seen(TorchDispatchMode):
    """Names of what passes through torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.namespace)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("plain", "passes"), [(True, False), (False, True)])
def test_a_plain_operation_does_not_pass_through_torchs_dispatcher_on_the_cpu(plain: bool, passes: bool) -> None:
    entry, _ = made(scaled, plain=plain)
    with Seen() as seen:
        entry(torch.ones(2))
    assert ("rqat_test" in seen.names) is passes


def test_the_kernel_runs_where_it_takes_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "import_module", lambda name: {f"{__package__}.kernel": KERNELS}[name])
    module.kernel_of.cache_clear()
    entry, _ = made(scaled, kernel="kernel.negated", takes=lambda x, by, dtype: by > 1)
    x = torch.ones(2)
    assert entry(x, 3.0, dtype=torch.float64)[0] == -3
    assert entry(x, 0.5)[0] == 0.5


class KERNELS:
    """A stand-in for a file of kernels."""

    @staticmethod
    def negated(x: Tensor, by: float, *, dtype: torch.dtype) -> Tensor:
        """Called as the definition is: what it takes by name only is given by name."""
        return (-x * by).to(dtype)


def test_what_is_written_and_gradients_are_told_to_torch() -> None:
    def add(total: Tensor, x: Tensor) -> None:
        total += x

    entry, operation = made(add, fake=lambda *_: None, mutates=("total",))
    total = torch.zeros(2)
    entry(total, torch.ones(2))
    assert torch.equal(total, torch.ones(2))
    assert operation.default._schema.arguments[0].is_write
    assert not operation.default._schema.arguments[1].is_write

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.by = inputs[1]

    entry, operation = made(
        scaled,
        keep=keep,
        backward=lambda ctx, grad: (grad * ctx.by, None, None),
        fake=lambda x, *_: torch.empty_like(x),
    )
    x = torch.ones(2, requires_grad=True)
    entry(x, 3.0).sum().backward()
    assert torch.equal(x.grad, torch.full((2,), 3.0))
    torch.library.opcheck(operation.default, (x, 3.0, torch.float32))


def test_compiled_code_holds_the_operation() -> None:
    from rqat_kernels.grid import dequantize, fit_minmax, quantize

    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    weight = torch.randn(4, 16)
    grid = fit_minmax(weight, 2, 7, symmetric=False)
    compiled = torch.compile(lambda w: dequantize(quantize(w, *grid, 7), *grid), backend=backend, fullgraph=True)
    assert torch.equal(compiled(weight), dequantize(quantize(weight, *grid, 7), *grid))
    assert [name for name in found if "rqat" in name] == ["rqat.quantize.default", "rqat.dequantize.default"]


@pytest.mark.skipif(not has_triton(), reason="the kernels are written in Triton; the dev extra has it")
def test_every_kernel_is_where_its_operation_says_and_takes_the_same_arguments() -> None:
    ours = [name for name in module.kernels if name.startswith("rqat::")]
    assert len(ours) >= 12
    for name in ours:
        kernel = module.kernel_of(name)
        operation = getattr(torch.ops.rqat, name.removeprefix("rqat::")).default
        known = [one.name for one in operation._schema.arguments]
        parameters = list(inspect.signature(kernel).parameters.values())
        assert [parameter.name for parameter in parameters[: len(known)]] == known, name
        assert all(parameter.default is not parameter.empty for parameter in parameters[len(known) :]), name


def test_operations_take_no_triton_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    monkeypatch.setattr(module, "kernel_of", lambda name: pytest.fail(f"{name} took its kernel"))
    x = torch.randn(3, 8)
    assert torch.ops.rqat.silu_mul(x).shape == (3, 4)
