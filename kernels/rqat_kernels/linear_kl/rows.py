"""Triton kernels over rows of logits: softmax statistics of student and teacher, and the gradient in place.

Letters as in `reference.py`; `s`, `t` are a position's logits of student and teacher, `c = log2(e) / tau`.

    statistics    M = max s,  L = sum 2^((s - M) c),  the same of t, and
                  A = sum 2^((t - M_t) c) (t - s) (forward),  sum 2^((s - M_s) c) (s - t) (reverse)
    forward       KL(p || q) = A / (L_t tau) - lse_t + lse_s
    reverse       KL(q || p) = A / (L_s tau) + lse_t - lse_s
    jsd           needs p and q for its sums, so it reads the logits once more (`jsd_sums`)
    gradient      the formulas of `reference.py`, written over s

A row is cut into `SPLITS` runs of tiles with a program each. A tile is `LANES x 8`, the 8 being one 16-byte load of a
thread: maximum and sums are kept per lane, with one rescaling for 8 logits, and reduced over lanes once per program.
The programs' results meet in `partial (rows, SPLITS, FIELDS)` float32, which the next kernel combines. Nothing is
atomic: two runs give the same bits.

Everything is float32, whatever the logits' dtype. Logits of padding and beyond the row count as `PADDING`. Maxima start
at `LOWEST`, far above it: compilers fuse `x c - max c` into one operation that does not round `x c`, so that for
`x = max = -1e30` the difference is no 0 but a rounding error of 1e22 or -1e22, and its power infinite or 0. With
`LOWEST` a lane of nothing but padding holds sums of exactly 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

VECTOR = tl.constexpr(8)
PADDING = tl.constexpr(-1e30)
LOWEST = tl.constexpr(-1e20)
"""What maxima start with: below every logit, and so far above `PADDING` that `2^(PADDING - LOWEST)` is 0."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(115.0)
"""80 / ln 2: the differences of log2-probabilities that the reference cuts at."""

FIELDS = tl.constexpr(8)
"""Of `partial`: M_s, L_s, M_t, L_t, A, L_s at temperature 1, the label's logit, unused."""

NONE = tl.constexpr(0)
FORWARD = tl.constexpr(1)
REVERSE = tl.constexpr(2)
JSD = tl.constexpr(3)

KINDS = {"forward": 1, "reverse": 2, "jsd": 3}
"""Of divergences that have a form here; any other is computed in plain torch."""


@triton.jit
def exp2(x, FAST: tl.constexpr):
    """`2^x`. Results below 2^-126 are 0 with FAST, which saves the instructions that keep them."""
    if FAST:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.exp2(x)


@triton.jit
def log2(x, FAST: tl.constexpr):
    """To 2^-22, and exactly 0 for 1; with FAST by one instruction and not by twenty."""
    if FAST:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.log2(x)


@triton.jit
def load_tile(row, columns):
    """Logits of a whole tile in float32."""
    return tl.load(row + columns).to(tl.float32)


@triton.jit
def load_end(row, columns, tokens, stride):
    """Logits of the tile where the vocabulary ends; `stride`, a multiple of 16, is how far the row may be read."""
    x = tl.load(row + columns, mask=columns < stride, other=0.0)
    return tl.where(columns < tokens, x.to(tl.float32), PADDING)


@triton.jit
def span(split, tiles, tokens, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """First tile of a program, the end of those without padding, the end of those with tokens, the end."""
    share = tl.cdiv(tiles, SPLITS)
    first = tl.minimum(split * share, tiles)
    last = tl.minimum(first + share, tiles)
    whole = tl.minimum(tl.maximum(tokens // TILE, first), last)
    some = tl.minimum(tl.maximum(tl.cdiv(tokens, TILE), first), last)
    return first, whole, some, last


@triton.jit
def nothing(LANES: tl.constexpr):
    """Maximum and sum of lanes that have seen no logit."""
    return tl.full((LANES,), LOWEST, tl.float32), tl.zeros((LANES,), tl.float32)


@triton.jit
def _online(top, x, c, FAST: tl.constexpr):
    """New maximum per lane, `2^((x - max) c)`, and what sums so far are multiplied with."""
    higher = tl.maximum(top, tl.max(x, 1))
    return higher, exp2(x * c - (higher * c)[:, None], FAST), exp2((top - higher) * c, FAST)


@triton.jit
def _take(s, t, ms, ls, mt, lt, a, l1, c, KIND: tl.constexpr, PLAIN: tl.constexpr, FAST: tl.constexpr):
    """Adds a tile to the lanes' statistics. PLAIN: the student's sum at temperature 1 is wanted besides."""
    before = ms
    ms, e, shrink = _online(ms, s, c, FAST)
    ls = ls * shrink + tl.sum(e, 1)
    if PLAIN:
        at_one = exp2(s * LOG2E - (ms * LOG2E)[:, None], FAST)
        l1 = l1 * exp2((before - ms) * LOG2E, FAST) + tl.sum(at_one, 1)
    if KIND != NONE:
        mt, et, shrink_t = _online(mt, t, c, FAST)
        lt = lt * shrink_t + tl.sum(et, 1)
        if KIND == FORWARD:
            a = a * shrink_t + tl.sum(et * (t - s), 1)
        if KIND == REVERSE:
            a = a * shrink + tl.sum(e * (s - t), 1)
    return ms, ls, mt, lt, a, l1


@triton.jit(do_not_specialize=["tiles", "tokens"])
def statistics(
    student, teacher, labels, partial, student_stride, teacher_stride, tiles, tokens, c,
    KIND: tl.constexpr, LABELS: tl.constexpr, PLAIN: tl.constexpr, SPLITS: tl.constexpr, LANES: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Program `row * SPLITS + split`: statistics of its part of a row into `partial`."""
    row, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    TILE: tl.constexpr = LANES * VECTOR
    mine = student + row.to(tl.int64) * student_stride
    theirs = teacher + row.to(tl.int64) * teacher_stride
    inside = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    ms, ls = nothing(LANES)
    mt, lt = nothing(LANES)
    a, l1 = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
    first, whole, some, _last = span(split, tiles, tokens, TILE, SPLITS)
    for tile in range(first, whole):
        columns = tile * TILE + inside
        s = load_tile(mine, columns)
        t = s
        if KIND != NONE:
            t = load_tile(theirs, columns)
        ms, ls, mt, lt, a, l1 = _take(s, t, ms, ls, mt, lt, a, l1, c, KIND, PLAIN, FAST)
    if whole < some:
        columns = whole * TILE + inside
        s = load_end(mine, columns, tokens, student_stride)
        t = s
        if KIND != NONE:
            t = load_end(theirs, columns, tokens, teacher_stride)
        ms, ls, mt, lt, a, l1 = _take(s, t, ms, ls, mt, lt, a, l1, c, KIND, PLAIN, FAST)

    out = partial + (row * SPLITS + split) * FIELDS
    top = tl.max(ms, 0)
    weight = exp2((ms - top) * c, FAST)
    tl.store(out, top)
    tl.store(out + 1, tl.sum(ls * weight, 0))
    if KIND != NONE:
        top_t = tl.max(mt, 0)
        weight_t = exp2((mt - top_t) * c, FAST)
        tl.store(out + 2, top_t)
        tl.store(out + 3, tl.sum(lt * weight_t, 0))
        if KIND == FORWARD:
            tl.store(out + 4, tl.sum(a * weight_t, 0))
        if KIND == REVERSE:
            tl.store(out + 4, tl.sum(a * weight, 0))
    if PLAIN:
        tl.store(out + 5, tl.sum(l1 * exp2((ms - top) * LOG2E, FAST), 0))
    if LABELS:
        # Read here, since the gradient will be written over it.
        label = tl.load(labels + row)
        there = (split == 0) & (label >= 0) & (label < tokens)
        tl.store(out + 6, tl.load(mine + label, mask=there, other=PADDING).to(tl.float32))


@triton.jit
def combined(partial, row, c, KIND: tl.constexpr, PLAIN: tl.constexpr, SPLITS: tl.constexpr):
    """Statistics of a whole row: log2 of the two normalizers, A without its maximum's factor, log2 of the plain one.

    Returns:
        `lse_s`, `lse_t` and `lse_1` in units of log2, such that `log2 q = s c - lse_s`; the divergence in nats.
    """
    base = partial + (row * SPLITS + tl.arange(0, SPLITS)) * FIELDS
    ms = tl.load(base)
    top = tl.max(ms, 0)
    weight = tl.exp2((ms - top) * c)
    ls = tl.sum(tl.load(base + 1) * weight, 0)
    lse_s = top * c + tl.log2(ls)
    lse_t, lse_1, value = lse_s * 0.0, lse_s, lse_s * 0.0
    if KIND != NONE:
        mt = tl.load(base + 2)
        top_t = tl.max(mt, 0)
        weight_t = tl.exp2((mt - top_t) * c)
        lt = tl.sum(tl.load(base + 3) * weight_t, 0)
        lse_t = top_t * c + tl.log2(lt)
        # In log2 and about the maxima, so that large logits cancel before they are rounded.
        gap = (top_t - top) * c + (tl.log2(lt) - tl.log2(ls))
        if KIND == FORWARD:
            value = (tl.sum(tl.load(base + 4) * weight_t, 0) / lt * c - gap) * LN2
        if KIND == REVERSE:
            value = (tl.sum(tl.load(base + 4) * weight, 0) / ls * c + gap) * LN2
    if PLAIN:
        l1 = tl.sum(tl.load(base + 5) * tl.exp2((ms - top) * LOG2E), 0)
        lse_1 = top * LOG2E + tl.log2(l1)
    return lse_s, lse_t, lse_1, value


@triton.jit
def _log_ratio(x, y, beta, FAST: tl.constexpr):
    """`log2(q / m)` from `x = log2 q`, `y = log2 p`: exactly 0 where they are equal. A NaN stays one."""
    gap = tl.maximum(y - x, -FAR, propagate_nan=tl.PropagateNan.ALL)
    gap = tl.minimum(gap, FAR, propagate_nan=tl.PropagateNan.ALL)
    return gap, -log2(1.0 + beta * (exp2(gap, FAST) - 1.0), FAST)


@triton.jit
def _jsd_tile(s, t, lse_s, lse_t, c, beta, FAST: tl.constexpr):
    """Sums per lane of `p log2(p / m)` and `q log2(q / m)`. Padding, with p = q = 0, adds 0."""
    x, y = s * c - lse_s, t * c - lse_t
    gap, from_q = _log_ratio(x, y, beta, FAST)
    return tl.sum(exp2(y, FAST) * (gap + from_q), 1), tl.sum(exp2(x, FAST) * from_q, 1)


@triton.jit(do_not_specialize=["tiles", "tokens"])
def jsd_sums(
    student, teacher, partial, sums, student_stride, teacher_stride, tiles, tokens, c, beta,
    SPLITS: tl.constexpr, LANES: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Program `row * SPLITS + split`: its part of `sum p log2(p / m)` and `sum q log2(q / m)` into `sums`."""
    row, split = tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    TILE: tl.constexpr = LANES * VECTOR
    mine = student + row.to(tl.int64) * student_stride
    theirs = teacher + row.to(tl.int64) * teacher_stride
    inside = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    lse_s, lse_t, _, _ = combined(partial, row, c, JSD, False, SPLITS)
    in_p, in_q = tl.zeros((LANES,), tl.float32), tl.zeros((LANES,), tl.float32)
    first, whole, some, _last = span(split, tiles, tokens, TILE, SPLITS)
    for tile in range(first, whole):
        columns = tile * TILE + inside
        s = load_tile(mine, columns)
        t = load_tile(theirs, columns)
        more_p, more_q = _jsd_tile(s, t, lse_s, lse_t, c, beta, FAST)
        in_p, in_q = in_p + more_p, in_q + more_q
    if whole < some:
        columns = whole * TILE + inside
        s = load_end(mine, columns, tokens, student_stride)
        t = load_end(theirs, columns, tokens, teacher_stride)
        more_p, more_q = _jsd_tile(s, t, lse_s, lse_t, c, beta, FAST)
        in_p, in_q = in_p + more_p, in_q + more_q
    out = sums + (row * SPLITS + split) * 2
    tl.store(out, tl.sum(in_p, 0))
    tl.store(out + 1, tl.sum(in_q, 0))


@triton.jit
def _slope(
    s, t, columns, lse_s, lse_t, lse_1, centre, label, c, beta, k, k_label,
    KIND: tl.constexpr, LABELS: tl.constexpr, PLAIN: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Gradient on the student's logits of a tile. `k` and `k_label` weigh divergence and cross entropy."""
    x = s * c - lse_s
    q = exp2(x, FAST)
    grad = q * 0.0
    if KIND == FORWARD:
        grad = (q - exp2(t * c - lse_t, FAST)) * k
    if KIND == REVERSE:
        grad = q * ((x - (t * c - lse_t)) * (LN2 * k) - centre * k)
    if KIND == JSD:
        _, from_q = _log_ratio(x, t * c - lse_t, beta, FAST)
        grad = q * (from_q - centre) * k
    if LABELS:
        plain = q
        if PLAIN:
            plain = exp2(s * LOG2E - lse_1, FAST)
        grad += (plain - tl.where(columns == label, 1.0, 0.0)) * k_label
    return grad


@triton.jit(do_not_specialize=["rows", "tiles", "tokens"])
def gradient(
    student, teacher, labels, partial, sums, inverse, losses, student_stride, teacher_stride, rows, tiles, tokens,
    c, beta, kl_weight, grad_weight, label_weight,
    KIND: tl.constexpr, LABELS: tl.constexpr, PLAIN: tl.constexpr, SPLITS: tl.constexpr, LANES: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Writes the gradient over a part of a row's student logits, 0 on padding, and the row's loss, not yet divided.

    `inverse` is one over the divisor, on the device. Rows go backwards: the last ones read are still in the cache.
    """
    row, split = rows - 1 - tl.program_id(0) // SPLITS, tl.program_id(0) % SPLITS
    TILE: tl.constexpr = LANES * VECTOR
    mine = student + row.to(tl.int64) * student_stride
    theirs = teacher + row.to(tl.int64) * teacher_stride
    inside = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    over = tl.load(inverse)
    lse_s, lse_t, lse_1, value = combined(partial, row, c, KIND, PLAIN, SPLITS)
    centre = value
    k = grad_weight * over
    if KIND == JSD:
        base = sums + (row * SPLITS + tl.arange(0, SPLITS)) * 2
        centre = tl.sum(tl.load(base + 1), 0)
        value = (beta * tl.sum(tl.load(base), 0) + (1.0 - beta) * centre) * LN2
        k *= LN2 * (1.0 - beta)
    # Rounding may leave less than nothing; a NaN stays one.
    loss = tl.where(value < 0.0, 0.0, value) * kl_weight
    label, k_label = -1, 0.0
    if LABELS:
        label = tl.load(labels + row).to(tl.int32)
        k_label = tl.where(label >= 0, label_weight * over, 0.0)
        entropy = lse_1 * LN2 - tl.load(partial + row * SPLITS * FIELDS + 6)
        loss += tl.where(label >= 0, entropy * label_weight, 0.0)
    if split == 0:
        tl.store(losses + row, loss)

    first, whole, some, last = span(split, tiles, tokens, TILE, SPLITS)
    for tile in range(first, whole):
        columns = tile * TILE + inside
        s = load_tile(mine, columns)
        t = s
        if KIND != NONE:
            t = load_tile(theirs, columns)
        grad = _slope(s, t, columns, lse_s, lse_t, lse_1, centre, label, c, beta, k, k_label, KIND, LABELS, PLAIN, FAST)
        tl.store(mine + columns, grad.to(student.dtype.element_ty))
    if whole < some:
        columns = whole * TILE + inside
        s = load_end(mine, columns, tokens, student_stride)
        t = s
        if KIND != NONE:
            t = load_end(theirs, columns, tokens, teacher_stride)
        grad = _slope(s, t, columns, lse_s, lse_t, lse_1, centre, label, c, beta, k, k_label, KIND, LABELS, PLAIN, FAST)
        grad = tl.where(columns < tokens, grad, 0.0)
        tl.store(mine + columns, grad.to(student.dtype.element_ty), mask=columns < student_stride)
    for tile in range(some, last):
        columns = tile * TILE + inside
        nothing = tl.zeros((LANES, VECTOR), student.dtype.element_ty)
        tl.store(mine + columns, nothing, mask=columns < student_stride)
