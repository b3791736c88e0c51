"""Mixtures of experts as linear layers: each expert by itself, under the names that checkpoints have for its weights.

transformers keeps the weights of all experts of a block in two tensors, of which nothing can be quantized, hooked or
packed alone. Here they are put apart; the result computes the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .families import layout_of

ROUTED = "rqat_routed"
"""Attribute of the rows an expert reads: the tokens `(N,)` that they are of, counted through a batch."""


def routed(rows: Tensor) -> Tensor | None:
    """Which tokens the rows `(N, I)` that a layer of an expert reads are of; None where a layer reads all tokens."""
    return getattr(rows, ROUTED, None)


class Expert(nn.Module):
    """A gated MLP, as in dense models."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, act: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (_linear(weight) for weight in (gate, up, down))
        self.act_fn = act

    def forward(self, rows: Tensor) -> Tensor:
        """`(N, hidden)` to `(N, hidden)`."""
        inner = self.act_fn(self.gate_proj(rows)) * self.up_proj(rows)
        setattr(inner, ROUTED, routed(rows))
        out: Tensor = self.down_proj(inner)
        return out


class Experts(nn.ModuleList):
    """All experts of a block. Each is called for every batch, with no rows where nothing was sent to it."""

    def forward(self, hidden: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Weighted sums of what the experts make of the tokens sent to them.

        Args:
            hidden: `(N, hidden)`.
            chosen, shares: `(N, K)`: numbers of experts, and what each counts.
        """
        result = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            tokens, place = torch.where(chosen == number)
            rows = hidden[tokens]
            setattr(rows, ROUTED, tokens)
            out = expert(rows) * shares[tokens, place, None]
            result.index_add_(0, tokens, out.to(result.dtype))
        return result


def separate_experts(model: nn.Module) -> None:
    """Puts the experts of a model of a known family apart, in place; nothing where it has none, or they are."""
    config: Any = model.config
    layout = layout_of(config.get_text_config())
    if not layout.expert:
        return
    inside, _, _ = layout.expert.rpartition(".")
    for index in range(config.get_text_config().num_hidden_layers):
        stacked: Any = model.get_submodule(f"{layout.block(index)}.{inside}")
        if isinstance(stacked, Experts):
            continue
        gates, ups = stacked.gate_up_proj.chunk(2, dim=1)
        triples = zip(gates, ups, stacked.down_proj, strict=True)
        trained = stacked.down_proj.requires_grad
        apart = Experts(Expert(*triple, stacked.act_fn) for triple in triples)
        model.set_submodule(f"{layout.block(index)}.{inside}", apart.requires_grad_(trained).train(stacked.training))


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
    made.weight = nn.Parameter(weight.detach().clone())
    return made
