"""Refuses weights that are no numbers, before anything is computed with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import NumericsError

if TYPE_CHECKING:
    import transformers


def check_finite(path: str, model: transformers.PreTrainedModel) -> None:
    """Refuses weights that are NaN or infinite, naming the first such tensor."""
    stored = model.state_dict().keys()
    tensors = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    refuse_not_finite(path, ((name, tensor) for name, tensor in tensors.items() if name in stored))


def refuse_not_finite(path: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuses tensors that are NaN or infinite, naming the first; none is kept."""
    # In one pass over each, without a copy. Of a GPU's all are fetched together, since it has to be waited for; on the
    # host each at once: answers that stay among the tensors' freed memory keep it from being used again.
    waiting = {}
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            finite = torch.isfinite(torch.stack(_wide(tensor).aminmax())).all()
            if finite.is_cuda:
                waiting[name] = finite
            elif not finite.item():
                raise _not_finite(path, name)
    for name, whole in zip(waiting, torch.stack([*waiting.values()]).tolist() if waiting else [], strict=True):
        if not whole:
            raise _not_finite(path, name)


def _not_finite(path: str, name: str) -> NumericsError:
    return NumericsError(
        f"'{path}': the tensor {name} holds values that are not finite.",
        hint="The checkpoint is damaged or was trained to divergence; fetch it again or use another one.",
    )


def _wide(tensor: Tensor) -> Tensor:
    """A tensor in a dtype that has an order: those of 8 bits have none."""
    return tensor.float() if tensor.element_size() == 1 else tensor
