"""The shapes that are timed: the linear layers of three Qwen3 sizes, fused as a server runs them, and their heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VOCABULARY = 151936
GROUP = 128


@dataclass(frozen=True)
class Linear:
    """A weight `(O, I)` and the name it goes by in tables."""

    model: str
    name: str
    out: int
    inp: int

    @property
    def label(self) -> str:
        """'8b.gate_up'."""
        return f"{self.model}.{self.name}"


@dataclass(frozen=True)
class Model:
    """A Qwen3 size: what its config.json says."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    head_dim: int = 128

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The four fused linears of a block: q, k and v as one, gate and up as one."""
        inside = self.heads * self.head_dim
        return (
            Linear(self.name, "qkv", inside + 2 * self.kv_heads * self.head_dim, self.hidden),
            Linear(self.name, "o", self.hidden, inside),
            Linear(self.name, "gate_up", 2 * self.inner, self.hidden),
            Linear(self.name, "down", self.hidden, self.inner),
        )

    @property
    def separate(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Shapes `(O, I)` of the linears that share an input, by the name of that input."""
        inside, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": ((inside, self.hidden), (kv, self.hidden), (kv, self.hidden)),
            "o": ((self.hidden, inside),),
            "gate_up": ((self.inner, self.hidden), (self.inner, self.hidden)),
            "down": ((self.hidden, self.inner),),
        }

    @property
    def body(self) -> int:
        """Weights in all quantized layers."""
        return self.layers * sum(linear.out * linear.inp for linear in self.linears)

    def config(self, *, layers: int | None = None, context: int = 8192) -> Any:
        """A transformers config of this size."""
        from transformers import Qwen3Config

        return Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            tie_word_embeddings=self.tied,
            max_position_embeddings=context,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )


MODELS = {
    "0.6b": Model("0.6b", hidden=1024, inner=3072, layers=28, heads=16, kv_heads=8, tied=True),
    "4b": Model("4b", hidden=2560, inner=9728, layers=36, heads=32, kv_heads=8, tied=True),
    "8b": Model("8b", hidden=4096, inner=12288, layers=36, heads=32, kv_heads=8, tied=False),
}

LINEARS = tuple(linear for name in ("8b", "0.6b", "4b") for linear in MODELS[name].linears)
"""The twelve shapes, those of the first target first."""

HEADS = tuple(Linear(model.name, "head", VOCABULARY, model.hidden) for model in MODELS.values())

ROWS = (1, 8, 16, 64, 2, 4, 32, 128, 256)
"""Rows of the input that are timed, the most telling first."""
