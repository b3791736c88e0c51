"""What is done to a whole model before calibration, and forward hooks that stay with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import transformers


class Transform:
    """Changes a model before it is quantized: rotations, smoothing, folding, quantized activations.

    Named in front of the quantizer: `quantize: [rotate, gptq]`, `quantize: [{method: rotate, seed: 1}, gptq]`.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    def apply(self, model: transformers.PreTrainedModel) -> Mapping[str, torch.Tensor]:
        """Changes weights in place so that the model computes the same, and returns the state that `attach` needs.

        The host unties a tied head before and saves it untied, where `unties` says so.
        """
        return {}

    def attach(self, model: transformers.PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
        """Adds forward hooks, if it has any; called after `apply`, and whenever a checkpoint made with it is loaded."""

    @property
    def unties(self) -> bool:
        """Whether embedding and head are changed differently, so that they can no longer share one tensor."""
        return False
