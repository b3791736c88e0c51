"""One optimizer step of quantization-aware training in Triton: formulas in `reference.py`.

A group of weights with its scale and zero point depends on no other, so a program takes a few groups from the gradient
to the new `w_hat` in registers: it reads `D, w, m, v` and writes `w, m, v, w_hat`, 28 bytes per weight where both ends
are in 16 bits. Gradients are read from, and `w_hat` is written to, the tensors of the single layers, whose addresses
stand in a small table: nothing is gathered before and scattered after, and one launch does any number of layers.

That all gradients are finite is looked up by a kernel before it, whose answer it reads on the device: the host need not
wait between the two.

Scales are computed anew from `s_0` and `r` here and by `scale_of`, with the same instructions: the model holds what
`scale_of` and `requantize` say, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..grid.kernel import code_of, round_half_even, snapped
from ..latent_step.kernel import straight_through
from .reference import Rates
from .stack import Stack

TILE = 1024
"""Elements per program, unless one group has more."""

WIDEST = 16384
"""Largest group, in weights: a program holds all of it in registers."""

BLOCK = 2048
"""Gradients that a program looks at in one turn."""

PARTS = 64
"""Programs that look for infinities in one tensor."""

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
def adam(value, grad, m, v, size, beta1, rest1, beta2, rest2, widen, eps):
    """The new value and moments.

    Root and quotient are the fast ones, 2 units in the last place off: of a step, which is small beside the value.
    """
    m = beta1 * m + rest1 * grad
    v = beta2 * v + rest2 * (grad * grad)
    return value - size * (m / (tl.sqrt(v) * widen + eps)), m, v


@triton.jit
def numbers_at(address):
    """The float32 numbers at an address that stands in a table."""
    return tl.load(address).to(tl.pointer_type(tl.float32))


@triton.jit(do_not_specialize=["first_layer", "rows"])
def _latent_adam(
    table, grads, refused, first_layer, rows,
    keep, decay, size, size_scale, size_zero, beta1, rest1, beta2, rest2, widen, eps,
    MAX_CODE: tl.constexpr, SCALES: tl.constexpr, ZEROS: tl.constexpr, GRAD: tl.constexpr, WEIGHT: tl.constexpr,
    IN_CODES: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (tile, layer); a row of `table` is a layer's addresses. All is loaded before anything is stored."""
    if tl.load(refused) != 0:
        return
    layer = first_layer + tl.program_id(1)
    entry = table + layer * 11
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < rows
    column = tl.arange(0, COLUMNS)
    mask = present[:, None]
    if GROUP != COLUMNS:
        mask = mask & (column < GROUP)[None, :]
    at = row[:, None] * GROUP + column[None, :]

    # A layer without a gradient has address 0, which is never read.
    address = tl.load(grads + layer)
    from_grad = address.to(tl.pointer_type(GRAD)) + at
    to_weight = tl.load(entry).to(tl.pointer_type(WEIGHT)) + at
    latent, first, second = numbers_at(entry + 1) + at, numbers_at(entry + 2) + at, numbers_at(entry + 3) + at
    if GROUP % 8 == 0:
        from_grad, to_weight = tl.multiple_of(from_grad, [16, 16]), tl.multiple_of(to_weight, [16, 16])
        latent = tl.multiple_of(latent, [16, 16])
        first, second = tl.multiple_of(first, [16, 16]), tl.multiple_of(second, [16, 16])
    ratio, zero = numbers_at(entry + 5) + row, numbers_at(entry + 8) + row
    d = tl.load(from_grad, mask=mask & (address != 0), other=0).to(tl.float32)
    w = tl.load(latent, mask=mask, other=0)
    m = tl.load(first, mask=mask, other=0)
    v = tl.load(second, mask=mask, other=0)
    s_0 = tl.load(numbers_at(entry + 4) + row, mask=present, other=1)
    r = tl.load(ratio, mask=present, other=0)
    z = tl.load(zero, mask=present, other=0)
    if SCALES:
        ratio_first, ratio_second = numbers_at(entry + 6) + row, numbers_at(entry + 7) + row
        m_r, v_r = tl.load(ratio_first, mask=present, other=0), tl.load(ratio_second, mask=present, other=0)
    if ZEROS:
        zero_first, zero_second = numbers_at(entry + 9) + row, numbers_at(entry + 10) + row
        m_z, v_z = tl.load(zero_first, mask=present, other=0), tl.load(zero_second, mask=present, other=0)
    # Every warp loads all numbers that a row has once, and the first warp stores them: it must not be early.
    tl.debug_barrier()

    s = scale_from(s_0, r)
    gw, to_scale, outside = straight_through(d, w, s[:, None], round_half_even(z)[:, None], MAX_CODE)
    gs = tl.sum(to_scale, axis=1)
    gz = -s * tl.sum(outside, axis=1)

    if IN_CODES:
        size = (size * s_0)[:, None]
        keep = (1.0 - (1.0 - keep) * s_0)[:, None]
    w, m, v = adam(w * keep, gw + decay * w, m, v, size, beta1, rest1, beta2, rest2, widen, eps)
    tl.store(latent, w, mask=mask)
    tl.store(first, m, mask=mask)
    tl.store(second, v, mask=mask)
    if SCALES:
        r, m_r, v_r = adam(r, gs * s, m_r, v_r, size_scale, beta1, rest1, beta2, rest2, widen, eps)
        tl.store(ratio, r, mask=present)
        tl.store(ratio_first, m_r, mask=present)
        tl.store(ratio_second, v_r, mask=present)
    if ZEROS:
        z, m_z, v_z = adam(z, gz, m_z, v_z, size_zero, beta1, rest1, beta2, rest2, widen, eps)
        z = tl.minimum(tl.maximum(z, 0.0), MAX_CODE)
        tl.store(zero, z, mask=present)
        tl.store(zero_first, m_z, mask=present)
        tl.store(zero_second, v_z, mask=present)
    s, z = scale_from(s_0, r)[:, None], round_half_even(z)[:, None]
    tl.store(to_weight, ((code_of(w, s, z, MAX_CODE) - z) * s).to(WEIGHT), mask=mask)


@triton.jit
def _look_for_infinity(table, refused, TYPE: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    """Program (part, tensor) writes 1 to `refused` if it meets an infinity or NaN; a table's row: address, numbers."""
    entry = table + tl.program_id(1) * 2
    count = tl.load(entry + 1)
    place = tl.arange(0, BLOCK)
    base = tl.multiple_of(tl.load(entry).to(tl.pointer_type(TYPE)) + place, [16])
    fine = tl.full([BLOCK], True, tl.int1)
    whole = count // BLOCK
    for block in range(tl.program_id(0), whole, PROGRAMS):
        fine = fine & (tl.abs(tl.load(base + block * BLOCK).to(tl.float32)) < float("inf"))
    if tl.program_id(0) == 0:
        rest = tl.load(base + whole * BLOCK, mask=whole * BLOCK + place < count, other=0)
        fine = fine & (tl.abs(rest.to(tl.float32)) < float("inf"))
    if tl.min(fine.to(tl.int32), axis=0) == 0:
        tl.store(refused, 1)


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


class Numbers:
    """Whole numbers on a device, sent there again only when they have changed."""

    def __init__(self) -> None:
        self.sent: list[int] | None = None
        self.there = torch.empty(0)

    def at(self, numbers: list[int], device: torch.device) -> Tensor:
        """`numbers` on `device`, int64; does not wait."""
        if numbers != self.sent:
            there = torch.tensor(numbers, dtype=torch.int64)
            # From pinned memory, so that the copy does not wait for the kernels before it.
            self.there = there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there
            self.sent = numbers
        return self.there


class Launches:
    """Steps of many stacks on one device: one launch for all layers that have equally many groups of one size.

    A launch per size leaves no program without work, and a model has few sizes. Addresses stand in tables that stay on
    the device; those of the gradients are looked at anew in every step.
    """

    def __init__(self, stacks: Sequence[Stack]) -> None:
        self.device = stacks[0].latent[0].device
        self._runs: dict[tuple[Any, ...], list[tuple[int, list[int]]]] = {}
        place = 0
        for stack in stacks:
            trained = len(stack.ratio) == 3, len(stack.zero) == 3
            for weight, (rows, addresses) in zip(stack.weights, stack.addresses(), strict=True):
                key = (stack.group, rows, weight.dtype, *trained)
                self._runs.setdefault(key, []).append((place, addresses))
                place += 1
        self._order = [place for run in self._runs.values() for place, _ in run]
        flat = [number for run in self._runs.values() for _, addresses in run for number in addresses]
        self._table = Numbers().at(flat, self.device)
        self._grads = Numbers()

    def step(self, grads: Sequence[Tensor | None], max_code: int, rates: Rates, refused: Tensor) -> None:
        """One update; nothing happens if the number in `refused` (int32, on the device) is not 0 by then.

        Args:
            grads: of every layer of every stack, of one dtype.
            max_code, rates: as the reference.
        """
        dense = [None if grad is None else aligned(grad) for grad in grads]
        addresses = [0 if grad is None else grad.data_ptr() for grad in dense]
        where = self._grads.at([addresses[place] for place in self._order], self.device)
        grad_dtype = DTYPES[next(grad.dtype for grad in dense if grad is not None)]
        decay, start = rates.weight_decay, 0
        with torch.cuda.device_of(where):
            for (group, rows, weight_dtype, scales, zeros), run in self._runs.items():
                per_tile, columns, warps = tile(group)
                _latent_adam[(triton.cdiv(rows, per_tile), len(run))](
                    self._table, where, refused, start, rows,
                    1.0 - rates.latent * decay if rates.decoupled else 1.0,
                    0.0 if rates.decoupled else decay,
                    rates.size(rates.latent), rates.size(rates.scale), rates.size(rates.zero),
                    rates.beta1, 1.0 - rates.beta1, rates.beta2, 1.0 - rates.beta2, 1.0 / rates.spread, rates.eps,
                    max_code, scales, zeros, grad_dtype, DTYPES[weight_dtype], rates.in_codes,
                    group, per_tile, columns,
                    num_warps=warps,
                )  # fmt: skip
                start += len(run)


class Search:
    """Looks for infinities and NaNs in many tensors of one device, without waiting before the answer is asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tables: dict[torch.dtype, Numbers] = {}
        self._answer = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._done = torch.cuda.Event() if device.type == "cuda" else None

    def start(self, tensors: Sequence[Tensor]) -> Tensor:
        """A number (int32, on the device) that will be 0 only if all is finite."""
        refused = torch.zeros(1, dtype=torch.int32, device=self.device)
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel():
                by_dtype.setdefault(tensor.dtype, []).append(aligned(tensor))
        with torch.cuda.device_of(refused):
            for dtype, some in by_dtype.items():
                rows = [number for tensor in some for number in (tensor.data_ptr(), tensor.numel())]
                table = self._tables.setdefault(dtype, Numbers()).at(rows, self.device)
                _look_for_infinity[(PARTS, len(some))](table, refused, DTYPES[dtype], PARTS, BLOCK)
            self._answer.copy_(refused, non_blocking=True)
            if self._done is not None:
                self._done.record()
        return refused

    def all_finite(self) -> bool:
        """What was found; waits for what was started, not for anything after it."""
        if self._done is not None:
            self._done.synchronize()
        return not self._answer.item()


def latent_adam(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    latent: Sequence[Tensor],
    origin: Tensor,
    ratio: Sequence[Tensor],
    zero: Sequence[Tensor],
    max_code: int,
    rates: Rates,
) -> None:
    """As the reference, for what `fits`."""
    launches = Launches([Stack(weights, latent, origin, ratio, zero)])
    launches.step(grads, max_code, rates, torch.zeros(1, dtype=torch.int32, device=origin.device))


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself if it lies densely from a multiple of 16 bytes on, or a copy that does."""
    if tensor.is_contiguous() and tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
