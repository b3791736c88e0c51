"""A training step on a Qwen3-0.6B of random weights: quantized against plain 16-bit fine-tuning, everything else equal.

All contenders share one model, one teacher, one batch and one loss (distillation from hidden states through
`linear_kl`): what differs is the optimizer, and for `eager fake-quant` that every linear layer rounds its weight on
every forward pass, the usual way of quantization-aware training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..bench import Absent, Bench
from ..registry import Job
from ..shapes import GROUP, MODELS, VOCABULARY
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender, describe, peak_megabytes
from .optimizer import BITS, layers_of

OPS = ("training",)
CONTEXT = 4096


def jobs() -> list[Job]:
    """Steps of 4,096 and of 4 x 4,096 tokens."""
    return [
        Job(
            "training",
            f"{CONTEXT * rows} tokens",
            3,
            lambda bench, rows=rows: _time(bench, rows),
            10 + rows,
            30 + 5 * rows,
        )
        for rows in (1, 4)
    ]


def random_model(bench: Bench, name: str, *, layers: int | None = None) -> nn.Module:
    """A Qwen3 of that size with random weights, in bfloat16."""
    from transformers import Qwen3ForCausalLM

    config = MODELS[name].config(layers=2 if bench.small else layers)
    if bench.small:
        config.vocab_size, config.hidden_size, config.intermediate_size = 512, 128, 256
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(bench.device):
            return Qwen3ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def body_linears(model: nn.Module) -> list[str]:
    """Names of the linear layers of the blocks."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers." in name]


def _time(bench: Bench, rows: int) -> Iterator[Row]:
    from rqat.train.optimizer import QuantizedOptimizer
    from rqat_kernels.linear_kl import linear_kl

    model: Any = random_model(bench, "0.6b")
    teacher: Any = random_model(bench, "0.6b").requires_grad_(False)
    names = body_linears(model)
    rates = {"lr": 1e-5, "scale_lr": 1e-4, "zero_lr": 1e-4}
    quantized = layers_of(bench, model, names)
    ours = QuantizedOptimizer(model, quantized, **rates)
    weights = [model.get_parameter(f"{name}.weight") for name in names]
    plain = torch.optim.AdamW(weights, lr=1e-5, fused=bench.device == "cuda")
    context = 64 if bench.small else CONTEXT
    batch = bench.integers(model.config.vocab_size, rows, context)

    def loss() -> Tensor:
        with torch.no_grad():
            theirs = teacher.model(batch, use_cache=False).last_hidden_state.flatten(0, 1)
        mine = model.model(batch, use_cache=False).last_hidden_state.flatten(0, 1)
        return linear_kl(mine, model.lm_head.weight, theirs, teacher.lm_head.weight)

    def stepped(optimizer: torch.optim.Optimizer) -> Callable[[int], None]:
        def step(i: int) -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()
            for weight in weights:
                weight.grad = None

        return step

    def eager() -> Contender:
        return Contender(_eager(model, names, 2**BITS - 1, stepped(plain)), graph=False)

    contenders: dict[str, Any] = {
        "bf16": Contender(stepped(plain), graph=False),
        "rqat": Contender(stepped(ours), graph=False),
        "rqat in torch": Contender(plain_torch(stepped(ours)), graph=False),
        "eager fake-quant": eager,
    }
    tokens = rows * context
    base = Row("training", "", "step", x_name="tokens", x=tokens, config={"model": "0.6b", "loss": "kd"})
    width, body = MODELS["0.6b"].hidden, MODELS["0.6b"].body
    # Student 6 and teacher 2 operations per weight and token; the frozen head 4 and 2. Attention is left out.
    flops = tokens * (8.0 * body + 6.0 * VOCABULARY * width)
    yield from bench.compare(base, contenders, baseline="bf16", limits={"": (0.0, flops)}, rounds=5)
    if bench.device == "cuda":
        for name in ("bf16", "rqat"):
            try:
                megabytes = peak_megabytes(lambda name=name: contenders[name].call(0))
                yield Row(**{**base.__dict__, "provider": name, "metric": "memory", "unit": "MB", "p50": megabytes})
            except Exception as error:
                yield Row(**{**base.__dict__, "provider": name, "metric": "memory", "note": describe(error)})


class _Rounded(nn.Module):
    """The usual fake quantization as a parametrization, straight through, in eager torch."""

    def __init__(self, weight: Tensor, max_code: int) -> None:
        from rqat_kernels.grid import fit_minmax

        super().__init__()
        scale, zero = fit_minmax(weight.detach().float(), weight.shape[1] // GROUP, max_code, symmetric=False)
        self.scale, self.zero, self.max_code = scale.requires_grad_(), zero, max_code

    def forward(self, weight: Tensor) -> Tensor:
        grouped = weight.float().view(*self.scale.shape, -1)
        s, z = self.scale[..., None], self.zero[..., None]
        u = grouped / s
        codes = torch.clamp((torch.round(u) - u).detach() + u + z, 0, self.max_code)
        return ((codes - z) * s).view(weight.shape).to(weight.dtype)


def _eager(model: nn.Module, names: list[str], max_code: int, step: Callable[[int], None]) -> Callable[[int], None]:
    """`step` with every linear layer rounding its weight in its forward pass."""
    rounded = {name: _Rounded(model.get_submodule(name).weight, max_code) for name in names}  # type: ignore[arg-type]
    if not rounded:
        raise Absent("no linear layers")

    def call(i: int) -> None:
        forwards = {}
        for name, rounding in rounded.items():
            module: Any = model.get_submodule(name)
            forwards[name] = module.forward
            module.forward = lambda x, m=module, r=rounding: nn.functional.linear(x, r(m.weight), m.bias)
        try:
            step(i)
        finally:
            for name in forwards:
                del model.get_submodule(name).forward  # the class's own again

    return call
