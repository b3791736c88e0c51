"""The parameters of a model that are trained: the weights of its quantized layers, and others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from ..errors import ModelError
from ..model.layers import ENDS


def weights_of(model: nn.Module, layers: Iterable[str]) -> dict[str, nn.Parameter]:
    """The weight of every layer in `layers`; refuses one that is missing or shared, but for a tied pair of ends."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    weights: dict[str, nn.Parameter] = {}
    for layer in layers:
        try:
            weight = model.get_parameter(f"{layer}.weight")
        except AttributeError:
            raise ModelError(
                f"quantized layer '{layer}' is not in the model.",
                hint="The checkpoint belongs to another architecture.",
            ) from None
        if len(owners[id(weight)]) > 1 and set(owners[id(weight)]) != {f"{end}.weight" for end in ENDS}:
            raise ModelError(
                f"quantized layer '{layer}' shares its weight with {', '.join(owners[id(weight)])}.",
                hint="Leave it out with quantize.skip.",
            )
        weights[layer] = weight
    return weights


def other_parameters(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Everything that is neither quantized nor an embedding nor the output head."""
    left_out = {id(weight) for weight in weights.values()}
    for accessor in ("get_input_embeddings", "get_output_embeddings"):
        module = getattr(model, accessor, lambda: None)()
        if module is not None:
            left_out |= {id(parameter) for parameter in module.parameters()}
    return {name: p for name, p in model.named_parameters() if id(p) not in left_out and p.is_floating_point()}
