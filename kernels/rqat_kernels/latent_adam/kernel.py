"""One optimizer step of quantization-aware training in Triton, in one launch: formulas in `reference.py`.

A group of weights with its scale and zero point depends on no other, so a program takes a few groups from the gradient
to the new `w_hat` in registers: it reads `D, w, m, v` and writes `w, m, v, w_hat`, 28 bytes per weight where both ends
are in 16 bits. Gradients are read from, and `w_hat` is written to, the tensors of the single layers, whose addresses
stand in a small table: nothing is gathered before and scattered after.

Scales are computed anew from `s_0` and `r` here and by `scale_of`, with the same instructions: the model holds what
`scale_of` and `requantize` say, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..grid.kernel import code_of, round_half_even, snapped
from ..latent_step.kernel import straight_through
from .reference import Rates

TILE = 2048
"""Elements per program, unless one group has more."""

WIDEST = 16384
"""Largest group, in weights: a program holds all of it in registers."""

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def scale_from(origin, ratio):
    """`snap_scale(s_0 exp(r))`."""
    return snapped(origin * tl.exp(ratio))


@triton.jit
def _scale_of(origin, ratio, out, R, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < R
    tl.store(out + row, scale_from(tl.load(origin + row, mask=mask), tl.load(ratio + row, mask=mask)), mask=mask)


@triton.jit
def adam(value, grad, first, second, at, mask, size, beta1, rest1, beta2, rest2, widen, eps):
    """The new value; moments at the pointers `first + at`, `second + at` are updated.

    Root and quotient are the fast ones, 2 units in the last place off: of a step, which is small beside the value.
    """
    m = beta1 * tl.load(first + at, mask=mask, other=0) + rest1 * grad
    v = beta2 * tl.load(second + at, mask=mask, other=0) + rest2 * (grad * grad)
    tl.store(first + at, m, mask=mask)
    tl.store(second + at, v, mask=mask)
    return value - size * (m / (tl.sqrt(v) * widen + eps))


@triton.jit
def _latent_adam(
    table, latent, latent_first, latent_second, origin, ratio, ratio_first, ratio_second, zero, zero_first, zero_second,
    factor, keep, decay, size, size_scale, size_zero, beta1, rest1, beta2, rest2, widen, eps,
    MAX_CODE: tl.constexpr, SCALES: tl.constexpr, ZEROS: tl.constexpr, GRAD: tl.constexpr, WEIGHT: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (tile, layer); a row of `table` is a layer's first row, its number of rows, and two addresses."""
    entry = table + tl.program_id(1) * 4
    rows = tl.load(entry + 1)
    if tl.program_id(0) * ROWS >= rows:
        return
    own = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = own < rows
    row = tl.load(entry) + own
    column = tl.arange(0, COLUMNS)
    mask = present[:, None]
    if GROUP != COLUMNS:
        mask = mask & (column < GROUP)[None, :]
    inner = own[:, None] * GROUP + column[None, :]
    at = row[:, None] * GROUP + column[None, :]

    # A layer without a gradient has address 0, which is never read.
    address = tl.load(entry + 2)
    from_grad = address.to(tl.pointer_type(GRAD)) + inner
    to_weight = tl.load(entry + 3).to(tl.pointer_type(WEIGHT)) + inner
    if GROUP % 16 == 0:
        from_grad, to_weight = tl.multiple_of(from_grad, [16, 16]), tl.multiple_of(to_weight, [16, 16])
    d = tl.load(from_grad, mask=mask & (address != 0), other=0).to(tl.float32)
    w = tl.load(latent + at, mask=mask, other=0)
    s_0 = tl.load(origin + row, mask=present, other=1)
    r = tl.load(ratio + row, mask=present, other=0)
    z = tl.load(zero + row, mask=present, other=0)
    s = scale_from(s_0, r)

    gw, to_scale, outside = straight_through(d, w, s[:, None], round_half_even(z)[:, None], MAX_CODE)
    gs = tl.sum(to_scale, axis=1) * factor
    gz = -s * tl.sum(outside, axis=1) * factor

    w = adam(
        w * keep, gw + decay * w, latent_first, latent_second, at, mask, size, beta1, rest1, beta2, rest2, widen, eps
    )
    tl.store(latent + at, w, mask=mask)
    if SCALES:
        r = adam(r, gs * s, ratio_first, ratio_second, row, present, size_scale, beta1, rest1, beta2, rest2, widen, eps)
        tl.store(ratio + row, r, mask=present)
    if ZEROS:
        z = adam(z, gz, zero_first, zero_second, row, present, size_zero, beta1, rest1, beta2, rest2, widen, eps)
        z = tl.minimum(tl.maximum(z, 0.0), MAX_CODE)
        tl.store(zero + row, z, mask=present)
    s, z = scale_from(s_0, r)[:, None], round_half_even(z)[:, None]
    tl.store(to_weight, ((code_of(w, s, z, MAX_CODE) - z) * s).to(WEIGHT), mask=mask)


def tile(group: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its number of warps."""
    columns = triton.next_power_of_2(group)
    rows = max(1, TILE // columns)
    return rows, columns, max(4, rows * columns // 1024)


def fits(weights: Sequence[Tensor], grads: Sequence[Tensor | None], latent: Sequence[Tensor], origin: Tensor) -> bool:
    """Whether the kernel can take these: float32 state, one dtype on either side, aligned, groups not too wide."""
    given = [grad for grad in grads if grad is not None]
    return (
        latent[0].dtype == torch.float32
        and latent[0].numel() // len(origin) <= WIDEST
        and len({weight.dtype for weight in weights}) == 1
        and len({grad.dtype for grad in given}) == 1
        and {weights[0].dtype, given[0].dtype} <= set(DTYPES)
        and all(tensor.is_contiguous() and tensor.data_ptr() % 16 == 0 for tensor in (*weights, *latent))
    )


def scale_of(origin: Tensor, ratio: Tensor) -> Tensor:
    """As the reference, float32."""
    out = torch.empty_like(origin)
    if out.numel():
        with torch.cuda.device_of(origin):
            _scale_of[(triton.cdiv(out.numel(), 1024),)](
                origin.contiguous(), ratio.contiguous(), out, out.numel(), 1024
            )
    return out


def latent_adam(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    latent: Sequence[Tensor],
    origin: Tensor,
    ratio: Sequence[Tensor],
    zero: Sequence[Tensor],
    max_code: int,
    rates: Rates,
    *,
    lsq: bool = False,
) -> None:
    """As the reference, for what `fits`."""
    group = latent[0].numel() // len(origin)
    dense = [None if grad is None else _dense(grad) for grad in grads]
    table, start = [], 0
    for weight, grad in zip(weights, dense, strict=True):
        count = weight.numel() // group
        table += [start, count, 0 if grad is None else grad.data_ptr(), weight.data_ptr()]
        start += count
    addresses = torch.tensor(table, dtype=torch.int64)
    if latent[0].is_cuda:
        # From pinned memory, so that the copy does not wait for the kernels before it.
        addresses = addresses.pin_memory().to(latent[0].device, non_blocking=True)
    rows, columns, warps = tile(group)
    where = (triton.cdiv(max(table[1::4]), rows), len(weights))
    grad_dtype = next(grad.dtype for grad in dense if grad is not None)
    # Frozen scales and zero points have no moments; any pointer will do.
    ratio, zero = (list(values) if len(values) == 3 else [values[0]] * 3 for values in (ratio, zero))
    trained = ratio[1] is not ratio[0], zero[1] is not zero[0]
    decay = rates.weight_decay
    with torch.cuda.device_of(latent[0]):
        _latent_adam[where](
            addresses, *latent, origin, *ratio, *zero,
            1.0 / math.sqrt(group * max_code) if lsq else 1.0,
            1.0 - rates.latent * decay if rates.decoupled else 1.0,
            0.0 if rates.decoupled else decay,
            rates.size(rates.latent), rates.size(rates.scale), rates.size(rates.zero),
            rates.beta1, 1.0 - rates.beta1, rates.beta2, 1.0 - rates.beta2, 1.0 / rates.spread, rates.eps,
            max_code, *trained, DTYPES[grad_dtype], DTYPES[weights[0].dtype], group, rows, columns, num_warps=warps,
        )  # fmt: skip


def _dense(grad: Tensor) -> Tensor:
    return (
        grad
        if grad.is_contiguous() and grad.data_ptr() % 16 == 0
        else grad.clone(memory_format=torch.contiguous_format)
    )
