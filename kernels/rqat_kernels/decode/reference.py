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
    keys[slots.long(), :, at] = key * turn + _quarter_turn(key) * lean
    values[slots.long(), :, at] = value
    query = query * turn + _quarter_turn(query) * lean
    # The host may look at lengths on the CPU only; elsewhere that would wait for the device.
    end = int(positions.max()) + 1 if positions.device.type == "cpu" else keys.shape[2]
    places = torch.arange(end, device=positions.device)
    seen = places <= positions[:, None]
    if window:
        seen &= places > positions[:, None] - window
    key, value = (cache[slots.long(), :, :end] for cache in (keys, values))
    found = scaled_dot_product_attention(query[:, :, None], key, value, attn_mask=seen[:, None, None], enable_gqa=True)
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


def append_greedy(logits: Tensor, tokens: Tensor, slots: Tensor, positions: Tensor, advance: Tensor) -> None:
    """What a greedy step ends with: `positions += advance`, and there the token of the largest logit.

    Args:
        logits: `(B, V)`.
        tokens: `(S, P)`, written at `slots (B,)` and the new positions.
        positions: `(B,)`, written.
        advance: `(B,)` of 0 or 1.
    """
    positions += advance
    tokens[slots, positions] = logits.argmax(dim=-1)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def _quarter_turn(x: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return torch.cat([-two, one], dim=-1)
