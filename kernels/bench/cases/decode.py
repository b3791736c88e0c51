"""What stands between the linear layers of a decoding step: attention over the cache, norm, rotation, SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..bench import Bench, poisoned, relative
from ..registry import Job
from ..shapes import MODELS
from ..switch import plain_torch
from ..table import Row
from ..timing import Contender, copies_for

OPS = ("decode",)
EPS = 1e-6


def jobs() -> list[Job]:
    """A check; attention of several batches over several lengths; norms."""
    return [
        Job("decode", "odd shapes", 2, _check, check=True),
        *(
            Job("decode", f"attend {batch}x{length}", 2, lambda b, n=batch, p=length: _attend(b, n, p), 26 + place, 4)
            for place, (batch, length) in enumerate(((1, 2048), (64, 512), (8, 2048)))
        ),
        Job("decode", "norm and SwiGLU", 2, _small, 40, 4),
    ]


def _cache(
    bench: Bench, batch: int, heads: int, key_heads: int, length: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor], Tensor]:
    qkv = bench.normal(batch, (heads + 2 * key_heads) * 128)
    norms = [bench.normal(128) for _ in range(2)]
    angle = bench.normal(batch, 64).repeat(1, 2)
    keys, values = (bench.normal(batch + 1, key_heads, length, 128) for _ in range(2))
    slots = torch.randperm(batch + 1, generator=bench.random, device=bench.device)[:batch]
    return (qkv, *norms, angle.cos(), angle.sin()), (keys, values), slots


def _check(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.decode import add_rms_norm, attend, reference, silu_mul

    for batch, heads, key_heads, length in ((3, 4, 2, 77), (1, 16, 8, 300)):
        inputs, cache, slots = _cache(bench, batch, heads, key_heads, length)
        positions = bench.integers(length, batch)
        wide = [tensor.double() for tensor in (*inputs, *cache)]
        with poisoned():
            got = attend(*inputs, *cache, slots, positions, EPS, 0)
        expected = reference.attend(*wide, slots, positions, EPS, 0)
        # Queries are rounded to bfloat16 three times, probabilities and the output once: 2^-9 each.
        yield bench.checked("decode", f"attend {batch}x{heads}x{length}", relative(got, expected), 1e-2)
    x, delta, weight = bench.normal(5, 1000), bench.normal(5, 1000), bench.normal(1000)
    with poisoned():
        _, normed = add_rms_norm(x, delta, weight, EPS)
        activated = silu_mul(x)
    wanted = reference.add_rms_norm((x + delta).double(), None, weight.double(), EPS)[1]
    yield bench.checked("decode", "add_rms_norm", relative(normed, wanted), 5e-3)
    yield bench.checked("decode", "silu_mul", relative(activated, reference.silu_mul(x.double())), 5e-3)


def _attend(bench: Bench, batch: int, length: int) -> Iterator[Row]:
    from rqat_kernels.decode import attend

    model = MODELS["0.6b"]
    length = 64 if bench.small else length
    inputs, cache, slots = _cache(bench, batch, model.heads, model.kv_heads, length)
    positions = torch.full((batch,), length - 1, device=bench.device)
    least = 2 * batch * model.kv_heads * length * 128 * 2
    copies = [cache, *(tuple(part.clone() for part in cache) for _ in range(copies_for(least) - 1))]

    def ours(i: int) -> Tensor:
        return attend(*inputs, *copies[i % len(copies)], slots, positions, EPS, 0)

    contenders = {
        "rqat": Contender(ours, len(copies)),
        "torch": Contender(plain_torch(ours), len(copies)),
    }
    base = Row("decode", "", "attend", x_name="positions", x=length, config={"batch": batch, "model": "0.6b"})
    yield from bench.compare(base, contenders, baseline="torch", limits={"": (float(least), 0.0)})


def _small(bench: Bench) -> Iterator[Row]:
    from rqat_kernels.decode import add_rms_norm, silu_mul

    x, delta, weight, wide = (bench.normal(*shape) for shape in ((8, 4096), (8, 4096), (4096,), (8, 24576)))
    work = {
        "add_rms_norm": (lambda i: add_rms_norm(x, delta, weight, EPS), 4 * x.nbytes),
        "silu_mul": (lambda i: silu_mul(wide), 1.5 * wide.nbytes),
    }
    for mode, (call, least) in work.items():
        contenders = {"rqat": Contender(call), "torch": Contender(plain_torch(call))}
        base = Row("decode", "", mode, x_name="rows", x=8, config={"model": "8b"})
        yield from bench.compare(base, contenders, baseline="torch", limits={"": (least, 0.0)})
