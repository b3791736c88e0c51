"""What headers tell of packed layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rqat.model.packed_shapes import parameters_of

OUT, IN, VOCAB = 64, 128, 100


@pytest.mark.parametrize(
    ("quantization", "parts"),
    [
        ({"quant_method": "gptq", "bits": 4}, {"qweight": (16, OUT), "qzeros": (1, 8), "scales": (1, OUT)}),
        ({"quant_method": "awq", "bits": 4}, {"qweight": (IN, 8), "qzeros": (1, 8), "scales": (1, OUT)}),
        ({"quant_method": "mlx", "bits": 2}, {"weight": (OUT, 8), "scales": (OUT, 1), "biases": (OUT, 1)}),
        ({"quant_method": "rqat", "layers": {"a.q_proj": "w2g128"}}, {"codes": (OUT, 8), "scale": (OUT, 1)}),
        ({"quant_method": "other"}, {"weight": (OUT, IN)}),
    ],
)
def test_packed_layers_count_by_their_weights(quantization: dict[str, Any], parts: dict[str, tuple[int, ...]]) -> None:
    """Words of codes, scales and zero points are none; biases are, and an embedding that is not packed is whole."""
    shapes = {f"a.q_proj.{part}": shape for part, shape in parts.items()}
    shapes |= {"a.q_proj.bias": (OUT,), "a.embed_tokens.weight": (VOCAB, OUT), "a.norm.weight": (OUT,)}
    tensors = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}
    named = {"a.q_proj": (OUT, IN), "a.embed_tokens": (VOCAB, OUT)}
    assert parameters_of(tensors, named, quantization) == OUT * IN + OUT + VOCAB * OUT + OUT
