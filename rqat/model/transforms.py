"""Transforms of a whole model: applied before calibration, kept with the checkpoint, attached again when it is loaded.

<checkpoint>/transforms.safetensors    <index>.<name of a tensor>: the state that every transform left, with its name
                                       and its options in the file's facts

A transform that only changes weights leaves nothing behind that has to be known later. One that adds forward hooks
(quantized activations, rotations at run time) is built again from its name and options, and given its state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..contracts import Transform
from ..errors import ModelError, NumericsError, PluginError
from ..registry import Registry
from .stored_schemes import TRANSFORMS_FILE
from .tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import transformers


@dataclass(frozen=True)
class Applied:
    """A transform that a model went through.

    Attributes:
        name: as the recipe has it.
        options: of the plugin, as plain values.
        state: what `Transform.apply` returned.
    """

    name: str
    options: Mapping[str, Any]
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def make(self, registry: Registry | None = None) -> Transform:
        """Builds the transform again.

        Raises:
            UnknownName: its plugin is not installed here.
        """
        registry = registry or Registry.current()
        card = registry.card("transform", self.name)
        made: Transform = registry.make(card, registry.options(card, self.options))
        return made

    def hooked(self, registry: Registry | None = None) -> bool:
        """Whether it adds forward hooks, without which the model computes something else."""
        return type(self.make(registry)).attach is not Transform.attach


def apply_transforms(
    model: transformers.PreTrainedModel, chosen: Sequence[tuple[str, Mapping[str, Any], Transform]]
) -> list[Applied]:
    """Applies transforms in order, in place, and attaches their hooks.

    Args:
        chosen: name, options and transform.

    Raises:
        NumericsError: one left values that are not finite.
        PluginError: one returned something else than tensors.
    """
    applied = []
    for name, options, transform in chosen:
        if transform.unties:
            untie(model)
        with torch.no_grad():
            state = dict(transform.apply(model) or {})
        wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
        if wrong:
            raise PluginError(
                f"transform '{name}': apply returned {', '.join(wrong)}, which is no tensor.",
                hint="Return a mapping of tensors, or nothing.",
            )
        for key, tensor in model.named_parameters():
            if not torch.isfinite(tensor).all():
                raise NumericsError(
                    f"transform '{name}' left values that are not finite in {key}.", hint="Check its options."
                )
        transform.attach(model, state)
        applied.append(Applied(name, dict(options), state))
    return applied


def untie(model: transformers.PreTrainedModel) -> None:
    """Gives a tied head a weight of its own, and says so in the configuration."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return
    head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=embedding.weight.requires_grad)
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False


def attach_transforms(
    model: transformers.PreTrainedModel, applied: Sequence[Applied], registry: Registry | None = None
) -> None:
    """Adds the hooks of transforms to a model that was loaded from a checkpoint made with them."""
    for one in applied:
        state = {key: tensor.to(model.device) for key, tensor in one.state.items()}
        one.make(registry).attach(model, state)


def save_transforms(folder: Path, applied: Sequence[Applied]) -> None:
    """Writes transforms beside a checkpoint; nothing where there are none."""
    if not applied:
        return
    tensors = {
        f"{index}.{key}": tensor.detach().cpu().contiguous()
        for index, one in enumerate(applied)
        for key, tensor in one.state.items()
    }
    facts = {"transforms": [{"name": one.name, "options": dict(one.options)} for one in applied]}
    write_tensors(folder / TRANSFORMS_FILE, tensors, facts)


def load_transforms(folder: Path) -> list[Applied]:
    """What `save_transforms` wrote; none where there is no such file.

    Raises:
        ModelError: the file is damaged.
    """
    if not (folder / TRANSFORMS_FILE).is_file():
        return []
    tensors, facts = read_tensors(folder / TRANSFORMS_FILE)
    try:
        return [
            Applied(
                entry["name"],
                entry["options"],
                {
                    key.removeprefix(f"{index}."): tensor
                    for key, tensor in tensors.items()
                    if key.startswith(f"{index}.")
                },
            )
            for index, entry in enumerate(facts["transforms"])
        ]
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"'{folder / TRANSFORMS_FILE}' is damaged: {error!r} is missing.", hint="Run the step again that wrote it."
        ) from error
