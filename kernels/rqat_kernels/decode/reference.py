"""One decoding step of a dense decoder layer, without its linear layers, in plain torch: the definition.

Letters: `B` rows, `H` query heads, `K` key heads (`H` is a multiple of `K`), `D` width of a head, `S` slots of a cache,
`P` positions of a slot, `F` width of the MLP. Row `b` is in slot `slots[b]`, and its token is at `positions[b]`.

All of them round where transformers' modules round, so that in float32 the two agree to the last few bits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`r = residual + delta` and `weight * r / sqrt(mean(r^2) + eps)` (arXiv 1910.07467, eq. 4).

    Args:
        residual, delta: `(B, I)`; without `delta`, `r` is `residual`.
        weight: `(I,)`.

    Returns:
        `r` and the normed `r`, both `(B, I)` in the dtype of `residual`.
    """
    total = residual if delta is None else residual + delta
    return total.clone() if delta is None else total, _rms_norm(total, weight, eps)


def attend(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    positions: Tensor,
    eps: float,
    window: int,
) -> Tensor:
    """Norms (Qwen3) and rotates (arXiv 2104.09864) queries and keys, appends keys and values to the cache, and attends.

    `softmax(q k^T / sqrt(D)) v` of every row's one token over positions 0 to `positions[b]` of its slot.

    Args:
        qkv: `(B, (H + 2K) D)`: queries, keys, values, head by head; head `h` reads key head `h // (H / K)`.
        q_weight, k_weight: `(D,)` of the norms of heads; None: there are none.
        cos, sin: `(B, D)`, of the rows' positions; both halves are equal.
        keys, values: `(S, K, P, D)`; position `positions[b]` of slot `slots[b]` is overwritten.
        slots, positions: `(B,)`, whole numbers. Rows that share a slot must not be looked at.
        window: how many of the last positions are seen; 0: all.

    Returns:
        `(B, H D)`.
    """
    heads, width = keys.shape[1], keys.shape[3]
    split = qkv.view(len(qkv), -1, width)
    query, key, value = split.split([split.shape[1] - 2 * heads, heads, heads], dim=1)
    if q_weight is not None and k_weight is not None:
        query, key = _rms_norm(query, q_weight, eps), _rms_norm(key, k_weight, eps)
    at, turn, lean = positions.long(), cos[:, None], sin[:, None]
    key, query = (each * turn + _quarter_turn(each) * lean for each in (key, query))
    if len(qkv) == 1 and positions.is_cpu:
        return _attend_one(query, key, value, keys[int(slots)], values[int(slots)], int(at), window)
    keys[slots.long(), :, at] = key
    values[slots.long(), :, at] = value
    # The host may look at lengths on the CPU only; elsewhere that would wait for the device.
    end = int(positions.max()) + 1 if positions.device.type == "cpu" else keys.shape[2]
    places = torch.arange(end, device=positions.device)
    seen = places <= positions[:, None]
    if window:
        seen &= places > positions[:, None] - window
    key, value = (cache[slots.long(), :, :end] for cache in (keys, values))
    found = scaled_dot_product_attention(query[:, :, None], key, value, attn_mask=seen[:, None, None], enable_gqa=True)
    return found.flatten(1)


def _attend_one(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, at: int, window: int
) -> Tensor:
    """`attend` of one row whose place the host knows: the cache is read where it is, and nothing is masked.

    Args:
        query: `(1, H, D)`, rotated. key, value: `(1, K, D)`, for position `at`.
        keys, values: `(K, P, D)`, the row's slot.
    """
    keys[:, at], values[:, at] = key[0], value[0]
    seen = slice(max(0, at + 1 - window) if window else 0, at + 1)
    found = scaled_dot_product_attention(query[:, :, None], keys[None, :, seen], values[None, :, seen], enable_gqa=True)
    return found.flatten(1)


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` (SwiGLU, arXiv 2002.05202): `(..., 2F)` to `(..., F)`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


def look_up(
    tokens: Tensor, slots: Tensor, positions: Tensor, embeddings: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What a step begins with: embeddings `(B, I)` of every row's token, cosines and sines `(B, D)` of its position.

    Args:
        tokens: `(S, P)`, of all slots.
        slots, positions: `(B,)`, whole numbers.
        embeddings: `(V, I)`.
        cos, sin: `(P, D)` of the rotary embedding.
    """
    return embeddings[tokens[slots, positions]], cos[positions], sin[positions]


def append(
    logits: Tensor,
    temperature: Tensor | None,
    floor: Tensor | None,
    seeds: Tensor,
    tokens: Tensor,
    logprobs: Tensor | None,
    told: Tensor,
    slots: Tensor,
    positions: Tensor,
    live: Tensor,
    limits: Tensor,
    stops: Tensor,
) -> None:
    """What a step ends with: the next token of every row, written behind its last one; rows that have ended retire.

    Greedy, or drawn by the inverse of the distribution function at `uniform(seeds, positions)`, so that what a row
    draws depends on nothing but its own logits, seed and position. A row ends with a token of `stops` or at its limit.
    From then on it computes the token at position 0 of the last slot, which belongs to nobody, and costs little.

    Args:
        logits: `(B, V)`.
        temperature: `(1,)` float32, above 0; None: the largest logit is taken, the first of equal ones.
        floor: `(B,)` float32; only tokens whose logits reach it are drawn. None: all.
        seeds: `(B,)` int64.
        tokens: `(S, P)`, written at `slots (B,)` and the new positions.
        logprobs: `(S, P)` float32, written there: log-probability of the token at `temperature` (greedy: at 1), not cut
            off by `floor`. None: not asked for.
        told: `(S,)` int32, written at `slots`: the new position; less than 0, as `-position`, where the row has ended.
        slots, positions: `(B,)`, written.
        live: `(B,)` of 0 or 1, written.
        limits: `(B,)`, position of the last token a row may have.
        stops: `(E,)`.
    """
    scores = logits.float() if temperature is None else logits.float() / temperature
    at = positions + live
    if temperature is None:
        chosen = scores.argmax(dim=-1)
    else:
        weights = scores.softmax(dim=-1)
        if floor is not None:
            weights = weights * (logits.float() >= floor[:, None])
        below = weights.cumsum(dim=-1)
        target = uniform(seeds, at)[:, None] * below[:, -1:]
        places = torch.arange(weights.shape[1], device=weights.device)
        last = torch.where(weights > 0, places, 0).amax(dim=-1)
        chosen = torch.minimum((below <= target).sum(dim=-1), last)
    tokens[slots, at] = chosen
    if logprobs is not None:
        logprobs[slots, at] = scores.log_softmax(dim=-1).gather(-1, chosen[:, None]).squeeze(-1)
    over = torch.isin(chosen, stops) | (at >= limits)
    told[slots] = torch.where(over, -at, at).to(told.dtype)
    ended = over & (live > 0)
    slots.masked_fill_(ended, len(tokens) - 1)
    positions.copy_(at.masked_fill(ended, 0))
    live.masked_fill_(ended, 0)


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """Numbers `(B,)` float32 between 0 and 1, of which 2^24 are possible, one for each seed and position.

    Both halves of a seed go through a hash of 32 bits (lowbias32, github.com/skeeto/hash-prospector).
    """
    mask = 0xFFFFFFFF
    bits = _hash32(((seeds & mask) + positions * 0x9E3779B9) & mask)
    bits = _hash32(bits ^ (seeds >> 32 & mask))
    return ((bits >> 8).float() + 0.5) * 2.0**-24


def _hash32(x: Tensor) -> Tensor:
    """Whole numbers below 2^32, in int64."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ x >> shift) * factor) & 0xFFFFFFFF
    return x ^ x >> 16


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _quarter_turn(x: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return torch.cat([-two, one], dim=-1)
