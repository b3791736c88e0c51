"""A dense decoder as few operations per token: fused projections, a static cache, and no modules in between.

Built on a loaded Hugging Face model, whose weights it shares. Linear layers may be packed, plain, or anything callable:
the same code decodes with 16-bit weights, so that what packing gains can be told from what the engine does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from rqat_kernels.decode import add_rms_norm, attend, look_up
from rqat_kernels.packed_linear import PackedLinear

from ..errors import ModelError
from ..model.families import FAMILIES, Family
from ..packed.fused import fuse, fuse_swiglu, is_bare
from .transfer import send

if TYPE_CHECKING:
    import transformers

ROTARIES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position alone, so that they can be tabulated."""


@dataclass
class Cache:
    """Keys and values of a fixed number of slots with a fixed number of positions.

    Attributes:
        keys, values: `(L, S, K, P, D)`: layers, slots, key heads, positions, width of a head.
        cos, sin: `(P, D)` of the rotary embedding.
    """

    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor


@dataclass
class _Layer:
    input_norm: Tensor
    qkv: Callable[[Tensor], Tensor]
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Callable[[Tensor], Tensor]
    mlp_norm: Tensor
    swiglu: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]
    window: int


class Decoder:
    """The computation of one of rqat's model families, for prompts and for single tokens.

    Raises:
        ModelError: the model is of another family, or has something this decoder lacks.
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        check_decodable(model)
        config: Any = model.config.get_text_config()
        family = FAMILIES[config.model_type]
        layout = family.layout
        self.heads: int = config.num_attention_heads
        self.key_heads: int = config.num_key_value_heads
        self.width: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps: float = config.rms_norm_eps
        self.embeddings: Tensor = model.get_parameter(f"{layout.embeddings}.weight")
        self.norm: Tensor = model.get_parameter(f"{layout.norm}.weight")
        self.head: Callable[[Tensor], Tensor] = model.get_submodule(layout.head)
        self._rotary = model.get_submodule(layout.rotary)
        self.packed = any(isinstance(module, PackedLinear) for module in model.modules())
        blocks: Any = model.get_submodule(layout.blocks)
        self.layers = [_layer(block, family, config, index) for index, block in enumerate(blocks)]

    def cache_bytes(self, positions: int) -> int:
        """Size of one slot."""
        return 2 * len(self.layers) * self.key_heads * positions * self.width * self.embeddings.element_size()

    def make_cache(self, slots: int, positions: int) -> Cache:
        """An empty cache; what it holds is undefined until it is written."""
        shape = (len(self.layers), slots, self.key_heads, positions, self.width)
        places = torch.arange(positions, device=self.embeddings.device)[None]
        cos, sin = self._rotary(self.embeddings[:1, None], places)
        keys, values = (self.embeddings.new_zeros(shape) for _ in range(2))
        return Cache(keys, values, cos[0].contiguous(), sin[0].contiguous())

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int], cache: Cache) -> Tensor:
        """Reads R prompts into the cache.

        All but attention is computed of their tokens alone; attention has a row for every prompt, padded to the
        longest.

        Args:
            prompts: token ids, one or more each.
            slots: of each prompt.

        Returns:
            Logits `(R, V)` of the token after each prompt.
        """
        device = self.embeddings.device
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        starts = list(accumulate(lengths, initial=0))
        tokens = send(list(chain.from_iterable(prompts)), device)
        about = send([lengths, starts[:-1], list(slots)], device)
        row = torch.arange(len(lengths), device=device).repeat_interleave(about[0], output_size=len(tokens))
        position = torch.arange(len(tokens), device=device) - about[1, row]
        place, slot = row * longest + position, about[2, row]
        x = embedding(tokens, self.embeddings)
        delta: Tensor | None = None
        cos, sin = cache.cos[position, None], cache.sin[position, None]
        # What comes last in a row is padding: it stays 0, and nothing real looks at it.
        padded = x.new_zeros(len(lengths) * longest, self.heads + 2 * self.key_heads, self.width)
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x, h = add_rms_norm(x, delta, layer.input_norm, self.eps)
            qk, v = (
                layer.qkv(h).view(len(x), -1, self.width).split([self.heads + self.key_heads, self.key_heads], dim=1)
            )
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = qk.split([self.heads, self.key_heads], dim=1)
                qk = torch.cat([self._head_norm(q, layer.q_norm), self._head_norm(k, layer.k_norm)], dim=1)
            qk = _rotate(qk, cos, sin)
            keys[slot, :, position] = qk[:, self.heads :]
            values[slot, :, position] = v
            padded[place] = torch.cat([qk, v], dim=1)
            found = self._attended(padded.view(len(lengths), longest, -1, self.width), layer.window)
            x, h = add_rms_norm(x, layer.o(found[place]), layer.mlp_norm, self.eps)
            delta = layer.down(layer.swiglu(h))
        ends = about[1] + about[0] - 1
        assert delta is not None
        _, last = add_rms_norm(x[ends], delta[ends], self.norm, self.eps)
        return self.head(last)

    def _attended(self, qkv: Tensor, window: int) -> Tensor:
        """Causal attention `(R T, H D)` of rows `(R, T, H + 2 K, D)`."""
        longest = qkv.shape[1]
        seen = None
        if 0 < window < longest:
            place = torch.arange(longest, device=qkv.device)
            distance = place[:, None] - place
            seen = (distance >= 0) & (distance < window)
        q, k, v = qkv.transpose(1, 2).split([self.heads, self.key_heads, self.key_heads], dim=1)
        found = scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=seen is None, scale=self.width**-0.5, enable_gqa=True
        )
        return found.transpose(1, 2).reshape(-1, self.heads * self.width)

    def step(self, tokens: Tensor, positions: Tensor, slots: Tensor, cache: Cache) -> Tensor:
        """Logits `(B, V)` after the tokens that stand at `positions (B,)` of `slots (B,)` in `tokens (S, P)`."""
        x, cos, sin = look_up(tokens, slots, positions, self.embeddings, cache.cos, cache.sin)
        delta: Tensor | None = None
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x, h = add_rms_norm(x, delta, layer.input_norm, self.eps)
            norms = (layer.q_norm, layer.k_norm)
            found = attend(layer.qkv(h), *norms, cos, sin, keys, values, slots, positions, self.eps, layer.window)
            x, h = add_rms_norm(x, layer.o(found), layer.mlp_norm, self.eps)
            delta = layer.down(layer.swiglu(h))
        return self.head(add_rms_norm(x, delta, self.norm, self.eps)[1])

    def _head_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return add_rms_norm(x.reshape(-1, self.width), None, weight, self.eps)[1].view(x.shape)


def check_decodable(model: transformers.PreTrainedModel) -> None:
    """Refuses models whose computation is not the one written down here.

    Raises:
        ModelError: saying what is different.
    """
    config: Any = model.config.get_text_config()
    rotary = getattr(config, "rope_parameters", None) or {}
    kind, share = rotary.get("rope_type", "default"), rotary.get("partial_rotary_factor", 1.0)
    problem = ""
    if config.model_type not in FAMILIES:
        known = [name for name, family in FAMILIES.items() if not family.undecodable]
        problem = f"its family is {config.model_type}, not one of {', '.join(known)}"
    elif FAMILIES[config.model_type].undecodable:
        problem = FAMILIES[config.model_type].undecodable
    elif config.hidden_act != "silu":
        problem = f"its activation is {config.hidden_act}, not silu"
    elif kind not in ROTARIES:
        problem = f"its rotary embedding is of type {kind}, not one of {', '.join(ROTARIES)}"
    elif share != 1:
        problem = f"its rotary embedding turns {share:g} of each head alone"
    else:
        problem = _passed_by(model)
    if problem:
        raise ModelError(
            f"'{config._name_or_path}' cannot be decoded by the engine: {problem}.",
            hint="Use --backend transformers.",
        )


def _passed_by(model: Any) -> str:
    """What the decoder would leave out without a word: hooks of modules that it reads from and never calls."""
    called = {id(module) for module in model.modules() if hasattr(module, "in_features")}
    for name, module in model.named_modules():
        if id(module) not in called and not is_bare(module):
            return f"{name or 'the model'} has hooks"
    return ""


def _layer(block: nn.Module, family: Family, config: Any, index: int) -> _Layer:
    layout = family.layout
    kinds: Sequence[str] | None = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or 0
    sliding = kinds[index] == "sliding_attention" if kinds else family.always_slides
    modules = dict(block.named_modules())
    q_norm, k_norm = (modules.get(name) for name in layout.head_norms)
    return _Layer(
        input_norm=block.get_parameter(f"{layout.attention_norm}.weight"),
        qkv=fuse(*(modules[name] for name in layout.qkv)),
        q_norm=None if q_norm is None else q_norm.get_parameter("weight"),
        k_norm=None if k_norm is None else k_norm.get_parameter("weight"),
        o=modules[layout.out],
        mlp_norm=block.get_parameter(f"{layout.mlp_norm}.weight"),
        swiglu=fuse_swiglu(*(modules[name] for name in layout.gate_up)),
        down=modules[layout.down],
        window=window if sliding else 0,
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-two, one], dim=-1) * sin
