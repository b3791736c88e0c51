"""Which group of a compressed-tensors file a layer is in: what compressed-tensors itself makes of the same config."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

from rqat.model.config_groups import group_of

LAYERS = ("a.q_proj", "a.k_proj", "b.q_proj", "b.down_proj", "lm_head")


def configured(groups: list[list[str]], ignore: list[str]) -> dict:
    """Group number `n` has `n + 2` bits."""
    weights = [{"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel"} for bits in range(2, 9)]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {"targets": targets, "weights": weights[number]} for number, targets in enumerate(groups)
        },
        "ignore": ignore,
    }


def theirs(quantization: dict) -> dict[str, int | None]:
    """Bits by layer, as compressed-tensors gives them to a model."""
    model = torch.nn.Module()
    for name in LAYERS:
        parent, _, last = name.rpartition(".")
        if parent and not hasattr(model, parent):
            model.add_module(parent, torch.nn.Module())
        model.get_submodule(parent).add_module(last, torch.nn.Linear(32, 32))
    apply_quantization_config(model, QuantizationConfig.model_validate(quantization), show_progress=False)
    found = {name: getattr(model.get_submodule(name), "quantization_scheme", None) for name in LAYERS}
    return {name: scheme.weights.num_bits if scheme else None for name, scheme in found.items()}


@pytest.mark.parametrize(
    ("groups", "ignore", "of_a_q_proj"),
    [
        ([["Linear"], ["a.q_proj"]], ["lm_head"], 3),
        ([["Linear"], ["re:.*q_proj"]], ["re:.*head"], 3),
        ([["re:.*q_proj"], ["a.q_proj"], ["Linear"]], [], 3),
        ([["re:a.*"], ["re:.*q_proj"]], [], 3),
        ([["re:.*proj"], ["re:.*q_proj", "re:a[.]"]], ["b.q_proj"], 2),
        ([["Linear"], ["Linear"]], ["lm_head"], 3),
        ([["a.q_proj", "Linear"], ["b.q_proj"], ["a.q_proj"]], [], 4),
        ([["re:q_proj"], ["b.down_proj"]], [], None),
        ([["Module"], ["Linear"]], [], 3),
        ([["Linear"]], ["Linear"], None),
    ],
)
def test_a_layer_is_in_the_group_that_compressed_tensors_gives_it(
    groups: list[list[str]], ignore: list[str], of_a_q_proj: int | None
) -> None:
    quantization = configured(groups, ignore)
    found = {name: group_of(name, quantization) for name in LAYERS}
    bits = {name: None if group is None else group["weights"]["num_bits"] for name, group in found.items()}
    assert bits == theirs(quantization)
    assert bits["a.q_proj"] == of_a_q_proj


def test_what_is_no_pattern_is_named() -> None:
    with pytest.raises(ValueError, match=r"'re:\[' is no pattern"):
        group_of("a.q_proj", configured([["re:["]], []))
