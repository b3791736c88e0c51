"""The output head as one more layer to quantize, after the blocks: the model's last norm, and `lm_head` behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..contracts import Block, SharedInput
from ..scheme import Scheme
from .families import layout_of
from .layers import HEAD

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


def head_shape(model: transformers.PreTrainedModel) -> tuple[int, int] | None:
    """`(V, hidden)` of a head with a weight of its own; None where it is tied to the embedding, or there is none."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.weight is model.get_input_embeddings().weight:
        return None
    return head.out_features, head.in_features


def head_block(model: transformers.PreTrainedModel, scheme: Scheme) -> Block:
    """The model's end as a block with one layer. Nothing may be folded: the norm is not the block before's."""
    end = ModelEnd(model.get_submodule(layout_of(model.config.model_type).norm), model.get_submodule(HEAD))
    return Block("", end, (SharedInput((HEAD,)),), {HEAD: scheme})
