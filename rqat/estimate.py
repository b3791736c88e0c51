"""Sizes of a model, from config.json and tensor headers alone; from them the stages estimate what they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .errors import RqatError
from .keys import ModelKeys
from .model.config import ModelConfig, read_config
from .model.layers import ENDS
from .scheme import Scheme, Schemes

FLOAT32 = 4

LOGITS_COPIES = 3
"""Arrays of logits alive at once in a loss: themselves, what the softmax keeps of them, and the gradient."""

LOGITS_CHUNK = 1 << 29
"""Bytes of logits in a loss that works in chunks."""

LATENT_BYTES = 2
"""Of a weight's place in its cell, as a train step leaves it for the next."""

CHECKPOINT_FILE = 1 << 30
"""Bytes of a checkpoint that torch makes in memory at once, beside the copy it writes from."""

AHEAD = 2
"""Blocks of a split model that are gathered at the same time: one is computed, and the next one is on its way."""

ENGINE_ROWS = 512
"""Completions that the engine writes at the same time, where there are as many; it holds no more."""

ENGINE_ROUNDS = 256
"""Positions of a completion's place in the engine's cache are a multiple of this."""

ENGINE_READS = 16384
"""Tokens of prompts that the engine reads at once, or those of one that is longer."""

PROMPT_TOKENS = 512
"""What the longest prompt is taken to have, where nobody has read it: every completion's place has room for it."""

LIBRARIES_BYTES = 1 << 30
"""Python, torch and transformers themselves."""


@dataclass(frozen=True)
class Needs:
    """What one step takes, in bytes.

    Attributes:
        memory: at the peak, on the device the model runs on, without that of the libraries.
        disk: when the step is done.
        extra: of disk while it runs, checkpoints for resuming included.
        chosen: what keys come to that leave it to the free memory.
    """

    memory: float = 0
    disk: float = 0
    extra: float = 0
    chosen: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """What one step of a plan takes.

    Attributes:
        step: its name.
        memory_bytes: at the peak, on the device the model runs on, of one process.
        disk_bytes: when the step is done.
        disk_peak_bytes: while it runs.
        chosen: what keys come to that leave it to the free memory.
        sharing: processes that each take so much of one memory: on the CPU, those of a machine. A GPU is one's alone.
    """

    step: str
    memory_bytes: int
    disk_bytes: int
    disk_peak_bytes: int
    chosen: Mapping[str, int] = field(default_factory=dict)
    sharing: int = 1

    @classmethod
    def of(cls, step: str, needs: Needs, sharing: int = 1) -> Estimate:
        """The estimate of a step, libraries included."""
        memory = int(needs.memory) + LIBRARIES_BYTES
        return cls(step, memory, int(needs.disk), int(needs.disk + needs.extra), needs.chosen, sharing)

    @property
    def together_bytes(self) -> int:
        """Of all processes that share a memory."""
        return self.memory_bytes * self.sharing


def engine_positions(tokens: int) -> int:
    """That the engine's cache has for a completion of so many, its prompt's among them."""
    return math.ceil(tokens / ENGINE_ROUNDS) * ENGINE_ROUNDS


def bits_of(
    schemes: Mapping[str, Scheme], config: ModelConfig, per_weight: Callable[[Scheme, int], float]
) -> tuple[float, float]:
    """Bits per quantized weight, and per parameter in all, in a checkpoint for servers.

    What is quantized is codes, scales and zero points; everything else has 16 bits.

    Args:
        schemes: of every quantized layer, by full name; at least one.
        per_weight: bits per weight of a scheme, for a layer of so many input features; see `contracts.options.in_file`.
    """
    shapes = dict.fromkeys(ENDS, (config.vocab, config.hidden)) | config.ends | config.linears
    weights = {name: math.prod(shapes[name]) for name in schemes}
    packed = sum(per_weight(scheme, shapes[name][1]) * weights[name] for name, scheme in schemes.items())
    count = sum(weights.values())
    return packed / count, (packed + 16 * (config.parameters - count)) / config.parameters


@dataclass(frozen=True)
class Sizes:
    """A model's sizes: parameters, and bytes where the name does not say otherwise.

    Attributes:
        keys: of the model to compress.
        config: of the same.
        offline: nothing may be fetched; a teacher whose config.json cannot be read counts as large as the model.
        per_weight: bits per weight of a scheme in a file.
        processes: how many work together; memory is that of one of them.
        free: bytes of memory that are free on the device; None where nobody knows.
    """

    keys: ModelKeys
    config: ModelConfig
    scheme: Schemes
    per_weight: Callable[[Scheme], float]
    device: str = "cpu"
    offline: bool = False
    processes: int = 1
    free: int | None = None

    @cached_property
    def width(self) -> int:
        """Bytes of a weight in memory."""
        return self._width(self.keys)

    @cached_property
    def rest_stored(self) -> int:
        """Bytes of all other parameters as steps and exports keep them: 16 bits, or 32 where the model has 32."""
        others = (
            tensor
            for name, tensor in self.config.tensors.items()
            if name.removesuffix(".weight") not in self.config.linears
        )
        return sum(math.prod(tensor.shape) * (FLOAT32 if tensor.dtype in ("F32", "F64") else 2) for tensor in others)

    @cached_property
    def quantized(self) -> int:
        """Parameters in quantized layers."""
        return sum(out * width for out, width in self.config.linears.values())

    @property
    def rest(self) -> int:
        """All other parameters."""
        return self.config.parameters - self.quantized

    @property
    def model(self) -> int:
        """The model in memory."""
        return self.config.parameters * self.width

    @cached_property
    def groups(self) -> int:
        """Groups of weights in quantized layers."""
        return sum(out * self.scheme.of(name).groups(width) for name, (out, width) in self.config.linears.items())

    @cached_property
    def checkpoint(self) -> int:
        """A quantized model on disk, as steps keep it."""
        return self.quantized + 5 * self.groups + self.rest_stored

    def teacher(self, keys: ModelKeys | None) -> int:
        """A teacher in memory; None is the model before quantization."""
        if keys is None:
            return self.model
        try:
            config = read_config(keys, offline=self.offline)
        except RqatError:  # which pre-flight reports
            return self.model
        return config.bytes if config.quantization else config.parameters * self._width(keys)

    @cached_property
    def codes(self) -> int:
        """A quantized model's layers in the host's memory: codes, scales and zero points."""
        return self.quantized + 5 * self.groups

    def optimizer(self, trained: int, moments: int, moved: int) -> int:
        """What trains so many weights: latents and their moments; of every group where its scale started, scale and
        zero point as they are trained, and moments of as many of those two as move.
        """
        return FLOAT32 * ((1 + moments) * trained + self.groups * (3 + moved * moments))

    def logits(self, tokens: int, held: str) -> int:
        """Logits of so many tokens in a loss; `held`: see `logits` of an objective's card."""
        width = {"model": self.width, "chunks": 0}.get(held, FLOAT32)
        return LOGITS_COPIES * tokens * self.config.vocab * width or LOGITS_CHUNK

    def activations(self, *, recomputed: bool) -> int:
        """Numbers per token that are alive at the worst moment of a backward pass, in the model's dtype.

        Of a block autograd keeps: the inputs of its linear layers, of which three are as wide as the hidden state and
        one as the MLP; queries, keys and values; of the MLP gate, its activation, up; and both norms' inputs in
        float32. While one is being passed, gradients of its widest arrays are there, too.

        Args:
            recomputed: only every block's input is kept, and one block at a time is computed again.
        """
        blocks, hidden, linears = self.config.blocks, self.config.hidden, self.config.linears
        if not blocks or not linears:
            return 0
        widest = max(width for _, width in linears.values())
        outputs = sum(out for out, _ in linears.values()) // blocks - 2 * hidden  # those of two go into sums
        block = outputs + 2 * widest + 3 * hidden + 2 * hidden * FLOAT32 // self.width
        in_flight = 3 * widest + 2 * hidden
        return in_flight + (blocks * hidden + block if recomputed else blocks * block)

    def cache(self, sequences: int, tokens: int) -> int:
        """Keys and values of whole sequences, and one position's logits."""
        raw = self.config.raw
        heads = int(raw.get("num_attention_heads", 1))
        kept = int(raw.get("num_key_value_heads") or heads)
        head = int(raw.get("head_dim") or math.ceil(self.config.hidden / heads))
        per_token = 2 * self.config.blocks * kept * head * self.width
        return sequences * (tokens * per_token + self.config.vocab * FLOAT32)

    def written(self, completions: int, tokens: int) -> int:
        """The same of completions that rqat writes as it does by default: on CUDA its engine, so many at a time."""
        return self.cache(completions, tokens) if self.device == "cpu" else self.engine_cache(completions, tokens)

    def engine_cache(self, completions: int, tokens: int) -> int:
        """The same in the engine: places of whole pieces, for as many as it writes at a time and one that is spare."""
        return self.cache(min(completions, ENGINE_ROWS) + 1, engine_positions(tokens))

    def engine_passing(self, completions: int, prompt: int, *, nucleus: bool) -> int:
        """What the engine takes for a while beside its cache, on CUDA: to read prompts, or to choose tokens.

        Of every token that is read, three arrays as wide as the hidden state, and gate, up and their product. Of every
        row that `top_p` bounds, logits in float32, sorted, and the places they had.

        Args:
            prompt: tokens of the longest.
            nucleus: tokens are bounded by `top_p`.
        """
        if self.device == "cpu":
            return 0
        rows = min(completions, ENGINE_ROWS)
        widest = max((width for _, width in self.config.linears.values()), default=0)
        read = max(prompt, min(ENGINE_READS, rows * prompt)) * 3 * (self.config.hidden + widest) * self.width
        return max(read, rows * self.config.vocab * (2 * FLOAT32 + 8) if nucleus else 0)

    def _width(self, keys: ModelKeys) -> int:
        narrow = keys.dtype == "bfloat16" or (keys.dtype == "auto" and self.device.startswith("cuda"))
        return 2 if narrow else FLOAT32


@dataclass(frozen=True)
class Learning:
    """What training takes in one process; bytes where the name does not say otherwise.

    Attributes:
        trained: parameters that are trained.
        optimizer: what the optimizer holds for them.
        teachers: models that are only looked at.
        shards: parts that all of this is split into, of which a process holds one.
        saves: checkpoints are written while training goes on.
        cache: of completions that are written.
        together: models that are gathered for a while, to write or to be compared, where they are split.
    """

    sizes: Sizes
    trained: int
    optimizer: int
    teachers: int
    shards: int = 1
    saves: bool = True
    cache: int = 0
    together: int = 0

    def memory(self, passing: float) -> float:
        """At the worst moment: what stays, and what one pass through the model takes beside it.

        Args:
            passing: activations and logits of a forward and a backward pass.
        """
        sizes, host, split = self.sizes, self.sizes.device == "cpu", self.shards > 1
        block = sizes.quantized // max(1, sizes.config.blocks) * sizes.width
        ends = sizes.rest * sizes.width
        stays: float = sizes.model + self.optimizer + self.teachers
        if host:  # the layers that training started from, and what is being written of the optimizer
            stays += sizes.codes + (self.optimizer if self.saves else 0)
        stays = stays / self.shards + (min(self.optimizer, CHECKPOINT_FILE) if host and self.saves else 0)
        passing += self.trained * sizes.width / self.shards
        if split:  # gathered weights of the model and of its teacher, and gradients that are not yet spread
            stays += (ends + AHEAD * block) * (2 if self.teachers else 1)
            passing += AHEAD * block + (ends if self.trained > sizes.quantized else 0)
        if host:  # or at the end: what the last checkpoint is written from, codes and places in their cells
            last = 0 if self.saves else sizes.optimizer(self.trained, 0, 0) / self.shards
            passing = max(passing, last + sizes.codes + sizes.quantized * LATENT_BYTES + sizes.rest_stored)
        if split:
            passing = max(passing, self.together + (self.cache if host else 0))
        # On a GPU the cache of completions is kept while the model learns from them.
        worst = stays + (max(passing, self.cache) if host else passing + self.cache)
        return max(worst, sizes.model + self.teachers) if split else worst  # each loads both before it splits them
