"""Which blocks of an exported model tell whether it is read right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rqat import Scheme
from rqat.model.blockwise import telling

LAYERS = ("self_attn.q_proj", "mlp.up_proj")


def reader(schemes: list[str], zeros: list[list[int]], scales: list[float], types: list[str] | None = None) -> Any:
    """Four blocks of two layers each; a block's layers are alike."""
    names = {f"model.layers.{block}.{layer}": block for block in range(4) for layer in LAYERS}
    return SimpleNamespace(
        config=SimpleNamespace(num_hidden_layers=4, model_type="qwen2", layer_types=types),
        layers={name: Scheme.parse(schemes[block]) for name, block in names.items()},
        grid_of=lambda name: (torch.tensor([[scales[names[name]]]]), torch.tensor([zeros[names[name]]])),
    )


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, [0]),
        ({"schemes": ["w4g64", "w4g64", "w3g64", "w4g64"]}, [0, 2]),
        ({"zeros": [[7, 8], [8, 9], [7, 9], [8, 3]]}, [0, 1, 3]),
        ({"scales": [0.5, 0.5, 0.5, 0.3]}, [0, 3]),  # 0.3 does not fit bfloat16
        ({"types": ["full_attention", "sliding_attention"] * 2}, [0, 1]),
    ],
)
def test_what_is_new_is_looked_at(changes: dict[str, Any], blocks: list[int]) -> None:
    alike: dict[str, Any] = {"schemes": ["w4g64"] * 4, "zeros": [[7, 8]] * 4, "scales": [0.5] * 4}
    assert telling(reader(**alike | changes)) == blocks
