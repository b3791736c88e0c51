"""The model families that are known: what their modules are called, and what is peculiar to each. Imports no torch.

A family whose decoder has a layout that is here is one entry of `FAMILIES`, by the name transformers has for it
(`model_type`), and one entry of the families in `tests/rqat/model/test_families.py`, which tries all of this out on a
tiny model. Quantization, the folding of scales and the engine's decoder read this table and know no family by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from ..contracts import SharedInput


@dataclass(frozen=True)
class Layout:
    """A dense decoder by the names of its modules: attention and a gated MLP, with norms around them, biases or not.

    Attributes:
        embeddings, rotary, norm, head: full names of the embeddings of tokens and of places, the last norm, the head.
        blocks: full name of the list of decoder blocks.
        attention_norm: the norm before attention, "" where there is none; like all that follow, by its name inside a
            block.
        qkv: the linear layers of queries, keys and values, which read the same input: the engine runs them as one, and
            some families have them as one.
        head_norms: norms of queries and of keys, in the families that have them.
        out: the linear layer behind attention.
        mlp_norm: the norm before the MLP, "" where there is none.
        gate_up: the layers that read the MLP's input: what the first gives gates what the second gives. Run as one, or
            stored as one.
        down: the MLP's last layer.
        norms_behind: norms of what attention and the MLP put out.
        expert: of a mixture of experts, what one of them is called inside a block, with its number as `{}`; `gate_up`
            and `down` are then inside of it. "" elsewhere.
        router: what chooses the experts; it stays as it is.
        experts: how many a block has, which `layout_of` finds in a configuration.
    """

    embeddings: str
    rotary: str
    blocks: str
    attention_norm: str
    qkv: tuple[str, ...]
    head_norms: tuple[str, str]
    out: str
    mlp_norm: str
    gate_up: tuple[str, ...]
    down: str
    norm: str
    head: str
    norms_behind: tuple[str, ...] = ()
    expert: str = ""
    router: str = ""
    experts: int = 0

    @cached_property
    def inputs(self) -> tuple[SharedInput, ...]:
        """The linear layers of one block in the order in which data passes them, and where a scale of theirs folds.

        With grouped queries values are narrower than the input of `out`: whoever folds into them shares a factor
        between the heads that share a value. Nothing folds into one part of a layer that is several.
        """
        values, up = (layers[-1] if layers[1:] else None for layers in (self.qkv, self.gate_up))
        attention = (
            SharedInput(self.qkv, before=self.attention_norm or None),
            SharedInput((self.out,), before=values),
        )
        if not self.expert:
            mlp = (SharedInput(self.gate_up, before=self.mlp_norm or None), SharedInput((self.down,), before=up))
            return (*attention, *mlp)
        inside = [f"{self.expert.format(number)}." for number in range(self.experts)]
        shared = ((tuple(f"{one}{name}" for name in self.gate_up), one) for one in inside)
        # The norm before them is read by all experts and by what chooses them: nothing folds into it.
        pairs = ((SharedInput(names), SharedInput((f"{one}{self.down}",), before=names[-1])) for names, one in shared)
        return (*attention, *(each for pair in pairs for each in pair))

    @property
    def norms(self) -> list[str]:
        """All norms of a block, by the name inside it; of heads, also where a family has none."""
        return [name for name in (self.attention_norm, self.mlp_norm, *self.head_norms, *self.norms_behind) if name]

    def block(self, index: int) -> str:
        """Full name of a block."""
        return f"{self.blocks}.{index}"

    def layer_names(self, blocks: int) -> list[str]:
        """Full names of all linear layers of `blocks` decoder blocks, in the order in which data passes them."""
        names = [name for group in self.inputs for name in group.names]
        return [f"{self.block(index)}.{name}" for index in range(blocks) for name in names]


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        layout: what its modules are called.
        always_slides: whether all blocks have the window of `sliding_window` where config.json has no `layer_types`;
            elsewhere none has, then.
        tied: whether the head is the embedding where config.json does not say.
        undecodable: why the engine cannot compute it; empty where it can.
    """

    layout: Layout
    always_slides: bool = False
    tied: bool = False
    undecodable: str = ""


LLAMA = Layout(
    embeddings="model.embed_tokens",
    rotary="model.rotary_emb",
    blocks="model.layers",
    attention_norm="input_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
    out="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate_up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    norm="model.norm",
    head="lm_head",
)
"""As in arXiv 2302.13971; Qwen3 has norms of heads, Qwen2 and Seed-OSS have biases of queries, keys and values."""

PHI3 = replace(LLAMA, qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",))
"""As in arXiv 2404.14219: queries, keys and values are one layer, gate and up another."""

OLMO2 = replace(
    LLAMA,
    attention_norm="",
    mlp_norm="",
    norms_behind=("post_attention_layernorm", "post_feedforward_layernorm"),
)
"""As in arXiv 2501.00656: attention and MLP read the stream as it is, and what they put out is normed."""

GEMMA3 = replace(
    LLAMA,
    mlp_norm="pre_feedforward_layernorm",
    norms_behind=("post_attention_layernorm", "post_feedforward_layernorm"),
)
"""As in arXiv 2503.19786: norms before and behind, each of which multiplies by one more than its weight."""

QWEN3_MOE = replace(
    LLAMA, expert="mlp.experts.{}", router="mlp.gate", gate_up=("gate_proj", "up_proj"), down="down_proj"
)
"""As in arXiv 2505.09388: every block has a mixture of experts."""

FAMILIES = {
    "gemma3_text": Family(GEMMA3, tied=True, undecodable="it has norms behind attention and MLP"),
    "llama": Family(LLAMA),
    "mistral": Family(LLAMA, always_slides=True),
    "olmo2": Family(OLMO2, undecodable="it has norms behind attention and MLP"),
    "phi3": Family(PHI3, always_slides=True),
    "qwen2": Family(LLAMA),
    "qwen3": Family(LLAMA),
    "qwen3_moe": Family(QWEN3_MOE, undecodable="its MLPs are mixtures of experts"),
    "seed_oss": Family(LLAMA),
    "smollm3": Family(LLAMA, undecodable="some of its blocks have no rotary embedding"),
}
"""By `model_type`: the families that can be quantized."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What config.json calls the number of experts."""


def layout_of(config: Any) -> Layout:
    """The layout of a model; that of most for a family that is not known, so that what it lacks can be told by name.

    Args:
        config: config.json, the same as transformers has it, or the name of a family without experts.
    """
    if isinstance(config, str):
        config = {"model_type": config}
    read = config.get if isinstance(config, Mapping) else lambda name: getattr(config, name, None)
    family = FAMILIES.get(str(read("model_type")))
    layout = LLAMA if family is None else family.layout
    if not layout.expert:
        return layout
    return _with_experts(layout, next((int(count) for name in EXPERTS if (count := read(name))), 0))


@cache
def _with_experts(layout: Layout, count: int) -> Layout:
    return replace(layout, experts=count)
