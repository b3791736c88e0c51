"""What a decoder does around its linear layers when it decodes one token per row.

`reference.py` is the definition; `kernel.py`, `attention.py` and `ends.py` are the kernels. All can be captured in
a CUDA graph: shapes are fixed, and lengths are read from the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import use_triton
from ..op import op
from . import reference

__all__ = ["add_rms_norm", "append", "attend", "look_up", "silu_mul"]

add_rms_norm = op(
    "rqat::add_rms_norm",
    fake=lambda residual, *_: (torch.empty_like(residual), torch.empty_like(residual)),
    kernel="kernel.add_rms_norm",
    takes=lambda residual, delta, weight, eps: use_triton(residual, weight),
    plain=True,
)(reference.add_rms_norm)


def _attended(
    qkv: Tensor, q_weight: object, k_weight: object, cos: object, sin: object, keys: Tensor, *_: object
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 2 * keys.shape[1] * keys.shape[3])


attend = op(
    "rqat::attend",
    fake=_attended,
    kernel="attention.attend",
    takes=lambda qkv, q_weight, k_weight, cos, sin, keys, values, *_: use_triton(qkv, keys, values),
    plain=True,
    mutates=("keys", "values"),
)(reference.attend)

silu_mul = op(
    "rqat::silu_mul",
    fake=lambda gate_up: gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2),
    kernel="kernel.silu_mul",
    takes=lambda gate_up: use_triton(gate_up),
    plain=True,
)(reference.silu_mul)


def _looked_up(
    tokens: Tensor, slots: Tensor, positions: Tensor, embeddings: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, angles = len(slots), cos.shape[1]
    return embeddings.new_empty(rows, embeddings.shape[1]), cos.new_empty(rows, angles), sin.new_empty(rows, angles)


look_up = op(
    "rqat::look_up",
    fake=_looked_up,
    kernel="ends.look_up",
    takes=lambda tokens, slots, positions, embeddings, cos, sin: use_triton(tokens, embeddings),
    plain=True,
)(reference.look_up)

append = op(
    "rqat::append",
    fake=lambda *_: None,
    kernel="ends.append",
    takes=lambda logits, temperature, floor, seeds, tokens, *_: use_triton(logits, tokens),
    plain=True,
    mutates=("tokens", "logprobs", "told", "slots", "positions", "live"),
)(reference.append)
