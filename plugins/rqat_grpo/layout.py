"""How the rows of a step lie in memory: as short as they are, the prompt beside its completion, without a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import rqat


@dataclass(frozen=True)
class Layout:
    """Rows of a micro-batch, padded behind, where causal attention never looks.

    TRL pads prompts in front and completions behind, all of a step to one length: a third of it and more is padding,
    and attention that takes a mask is slower than attention that knows itself to be causal.

    Attributes:
        ids: `(B, L)`, L the length of the longest row.
        mask: `(B, L)`, 1 on tokens.
        labels: `(B, L)`: the tokens of completions, and `rqat.IGNORED`.
        columns: `(B, C)`: where in `ids` TRL's columns of completions stand, those of padding anywhere.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    columns: Tensor

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, completion: int) -> Layout:
        """From TRL's rows `(B, P + C)`, with prompts padded in front, and their mask; `completion` is C."""
        width = ids.shape[1]
        prompts = mask[:, :-completion].sum(dim=1, keepdim=True)
        lengths = mask.sum(dim=1, keepdim=True)
        places = torch.arange(max(int(lengths.max()), 2), device=ids.device)[None]
        found = ids.gather(1, (places + width - completion - prompts).clamp(max=width - 1))
        there = places < lengths
        columns = torch.arange(completion, device=ids.device)[None] + prompts
        return cls(
            found,
            there.to(mask.dtype),
            found.masked_fill(~there | (places < prompts), rqat.IGNORED),
            columns.clamp(max=places.shape[1] - 1),
        )

    def completions(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Scores `(B, L - 1)` of the tokens from the second on as TRL wants them: `(B, C)`, 0 where its mask is."""
        counted = mask[:, -self.columns.shape[1] :] != 0
        return scores.gather(1, self.columns - 1).masked_fill(~counted, 0.0)


def by_length(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a step, split into micro-batches in the order of their lengths, the longest first.

    Args:
        parts: micro-batches of one size, as TRL's GRPO trainer has them: tensors and lists of rows, and what holds for
            all of them.
    """
    lengths = torch.cat([part["prompt_mask"].sum(dim=1) + part["completion_mask"].sum(dim=1) for part in parts])
    order = lengths.argsort(descending=True, stable=True)
    places: list[int] = order.tolist()
    size = len(places) // len(parts)
    found: list[dict[str, Any]] = [{} for _ in parts]
    for key, first in parts[0].items():
        pieces: Sequence[Any] = [first] * len(parts)
        if isinstance(first, Tensor) and first.ndim:
            pieces = torch.cat([part[key] for part in parts])[order].split(size)
        elif isinstance(first, list):
            rows = [row for part in parts for row in part[key]]
            pieces = [[rows[place] for place in places[k * size : (k + 1) * size]] for k in range(len(parts))]
        for part, piece in zip(found, pieces, strict=True):
            part[key] = piece
    return found
