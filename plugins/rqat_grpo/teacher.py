"""What GRPO learns from a teacher: its distributions on the completions that the student wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import rqat
from rqat_kernels.linear_kl import linear_kl

from .layout import Layout

if TYPE_CHECKING:
    import transformers


@dataclass(frozen=True)
class Distilled:
    """On-policy distillation (arXiv 2306.13649): the divergence from a teacher on the student's own tokens.

    Attributes:
        teacher: frozen.
        weight: of the divergence in the loss.
        divergence: a name of `rqat_kernels.divergences`.
        beta: the teacher's share in the mixture, for those that mix.
        vocabulary: number of tokens.
    """

    teacher: transformers.PreTrainedModel
    weight: float
    divergence: str
    beta: float
    vocabulary: int

    def loss(self, student: transformers.PreTrainedModel, hidden: Tensor, layout: Layout, count: Tensor) -> Tensor:
        """The divergence summed over the tokens that are learned from, over `count`; not yet weighted.

        Args:
            hidden: last hidden states of the student `(B, L, d)`, with their graph.
            layout: of the rows that it read.
            count: tokens of the whole batch.
        """
        # Counted once: a GPU has to be waited for, to know how many there are. A place predicts the token behind it.
        places = (layout.labels[:, 1:] != rqat.IGNORED).nonzero(as_tuple=True)
        theirs = rqat.as_forward(self.teacher, self._hidden, layout.ids)
        return linear_kl(
            hidden[places],
            student.get_output_embeddings().weight,
            theirs[places],
            self.teacher.get_output_embeddings().weight,
            divergence=self.divergence,
            beta=self.beta,
            count=count,
            vocabulary=self.vocabulary,
        )

    @torch.no_grad()
    def _hidden(self, ids: Tensor) -> Tensor:
        found: Tensor = self.teacher.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return found


@contextmanager
def last_hidden_states(model: transformers.PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collects what the model without its head puts out, of every forward pass inside."""
    found: list[Tensor] = []
    handle = model.base_model.register_forward_hook(lambda *call: found.append(call[-1].last_hidden_state))
    try:
        yield found
    finally:
        handle.remove()
