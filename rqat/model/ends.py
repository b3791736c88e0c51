"""The model's two ends as layers to quantize: the embedding before the blocks, the head behind them.

A pair that is tied is one weight, called `model.embed_tokens`. It is quantized before the blocks, so that they are
calibrated on what the quantized embedding puts out; its statistics are those at the input of the head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..contracts import Block, SharedInput
from ..scheme import Scheme
from .families import layout_of
from .layers import EMBEDDING, HEAD

if TYPE_CHECKING:
    import transformers


class ModelEnd(nn.Module):
    """What comes after the last block, called like one: hidden states `(B, T, hidden)` to logits `(B, T, V)`."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.add_module(HEAD, head)

    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        """Logits."""
        logits: Tensor = self.get_submodule(HEAD)(self.norm(hidden))
        return logits


def is_tied(model: transformers.PreTrainedModel) -> bool:
    """Whether the head's weight is the embedding."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def end_shapes(model: transformers.PreTrainedModel) -> dict[str, tuple[int, int]]:
    """`(V, hidden)` of the ends that have a weight of their own, by name: of a tied pair the embedding alone."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    shapes = {}
    if isinstance(embedding, nn.Embedding):
        shapes[EMBEDDING] = (embedding.num_embeddings, embedding.embedding_dim)
    if isinstance(head, nn.Linear) and not is_tied(model):
        shapes[HEAD] = (head.out_features, head.in_features)
    return shapes


def embedding_block(model: transformers.PreTrainedModel, scheme: Scheme) -> Block:
    """The model's beginning as a block with one layer: the embedding, or the head that it is tied to."""
    inside, _, name = EMBEDDING.rpartition(".")
    beginning = nn.Module()
    beginning.add_module(name, model.get_output_embeddings() if is_tied(model) else model.get_input_embeddings())
    return Block(inside, beginning, (SharedInput((name,)),), {name: scheme})


def head_block(model: transformers.PreTrainedModel, scheme: Scheme) -> Block:
    """The model's end as a block with one layer. Nothing may be folded: the norm is not the block before's."""
    end = ModelEnd(model.get_submodule(layout_of(model.config).norm), model.get_submodule(HEAD))
    return Block("", end, (SharedInput((HEAD,)),), {HEAD: scheme})
