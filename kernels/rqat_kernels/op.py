"""`op`: makes a function in plain torch a kernel operation that torch knows, with a Triton kernel behind it.

The function's signature is said once, where it is defined:

    quantize = op(
        "rqat::quantize",
        fake=lambda weight, *_: torch.empty(weight.shape, dtype=torch.uint8, device=weight.device),
        kernel="kernel.quantize",
        takes=lambda weight, scale, zero, _: use_triton(weight, scale, zero),
        plain=True,
    )(reference.quantize)

`torch.ops.rqat.quantize` takes the same arguments, all of them by place and none left out.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from functools import cache, wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar, get_type_hints

import torch

from .dispatch import plain_call

P = ParamSpec("P")
R = TypeVar("R")

kernels: dict[str, str] = {}
"""Of every operation with a kernel: where that is, e.g. "rqat::quantize": "rqat_kernels.grid.kernel.quantize"."""


def op(
    name: str,
    *,
    fake: Callable[..., Any],
    kernel: str = "",
    takes: Callable[..., bool] | None = None,
    plain: bool = False,
    mutates: Iterable[str] = (),
    keep: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Registers the decorated function, which is the definition, as the operation `name`.

    Args:
        name: as torch has it, "rqat::quantize".
        fake: shapes, dtypes and devices of the results: called with all arguments by place, returns empty tensors.
        kernel: "file.function" in the package of the decorated function: called like it, in its place, where `takes`
            says so. Its file is first imported then, since it needs Triton.
        takes: whether the kernel can do it: called with all arguments by place.
        plain: call the function at once where the first argument is on the CPU and nothing is compiled: torch's
            dispatcher costs tens of microseconds. Only without `backward`, which such a call knows nothing of.
        mutates: names of the arguments that are written.
        keep: `keep(ctx, inputs, output)` saves for the backward pass; `inputs` are all arguments by place.
        backward: `backward(ctx, *gradients)` returns a gradient or None for each argument.

    Returns:
        what makes of a function one with the same signature, which runs the operation.
    """

    def made(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        if kernel:
            kernels[name] = f"{sys.modules[function.__module__].__package__}.{kernel}"
        operator = torch.library.custom_op(name, _implementation(name, function, takes), mutates_args=tuple(mutates))
        operator.register_fake(fake)
        if backward is not None:
            operator.register_autograd(backward, setup_context=keep)
        names = list(signature.parameters)
        given = {key: value.default for key, value in signature.parameters.items() if value.default is not value.empty}
        # By number of arguments given by place: defaults of the others.
        rest = [{key: given[key] for key in names[count:] if key in given} for count in range(len(names) + 1)]

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            first: Any = args[0] if args else kwargs.get(names[0])
            if plain and (first is None or plain_call(first)):
                return function(*args, **kwargs)
            return operator(*args, **{**rest[len(args)], **kwargs})

        return run

    return made


def _implementation(name: str, function: Callable[..., Any], takes: Callable[..., bool] | None) -> Callable[..., Any]:
    """What torch calls with all arguments by place; its signature tells torch their names and types."""
    signature, types = inspect.signature(function), get_type_hints(function)
    by_name = [key for key, value in signature.parameters.items() if value.kind is value.KEYWORD_ONLY]
    places = len(signature.parameters) - len(by_name)

    def implementation(*args: Any) -> Any:
        chosen = kernel_of(name) if name in kernels and takes is not None and takes(*args) else function
        return chosen(*args[:places], **dict(zip(by_name, args[places:], strict=True)))

    flat = [
        value.replace(kind=value.POSITIONAL_OR_KEYWORD, default=value.empty, annotation=types[key])
        for key, value in signature.parameters.items()
    ]
    returned = None if types["return"] is type(None) else types["return"]
    vars(implementation)["__signature__"] = signature.replace(parameters=flat, return_annotation=returned)
    implementation.__name__ = function.__name__
    return implementation


@cache
def kernel_of(name: str) -> Callable[..., Any]:
    """The kernel's entry of the operation `name`; imports Triton."""
    module, _, function = kernels[name].rpartition(".")
    return getattr(import_module(module), function)
