"""How much memory and disk the steps of a plan take, from config.json and tensor headers alone: bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .batches import sequences_at_once
from .errors import ModelError, RqatError
from .keys import CalibrationKeys, EvaluateKeys, ModelKeys, TrainKeys
from .model.config import ModelConfig, read_config
from .model.layers import HEAD, choose_layers
from .plan import Plan, Step

FLOAT32 = 4
LOGITS_COPIES = 3
"""Arrays of logits alive at once in a loss: student, teacher or softmax, gradient; objectives that chunk need less."""

LIBRARIES_BYTES = 1 << 30
"""Python, torch and transformers themselves."""


@dataclass(frozen=True)
class Estimate:
    """What one step takes.

    Attributes:
        step: its name.
        memory_bytes: at the peak, on the device the model runs on.
        disk_bytes: when the step is done.
        disk_peak_bytes: while it runs, checkpoints for resuming included.
    """

    step: str
    memory_bytes: int
    disk_bytes: int
    disk_peak_bytes: int


def estimate(
    plan: Plan, config: ModelConfig, device: str = "cpu", *, offline: bool = False, processes: int = 1
) -> list[Estimate]:
    """Memory and disk of every step.

    Args:
        config: of the model to compress.
        offline: nothing may be fetched, config.json of a teacher included; a teacher that cannot be read counts as
            large as the model.
        processes: how many train together; memory is that of one of them.
    """
    sizes = _Sizes(plan, config, device, offline, processes)
    return [sizes.of(step) for step in plan.steps]


def bits_of(plan: Plan, config: ModelConfig) -> tuple[float, float]:
    """Bits per quantized weight, and per parameter in all, in a checkpoint for servers.

    What is quantized is codes, scales and zero points; everything else, embeddings among it, has 16 bits.

    Raises:
        ModelError: the recipe's quantizer cannot quantize the layers that it is to.
    """
    keys = plan.recipe.quantize
    quantized = choose_layers(
        config.linears, plan.scheme, skip=keys.skip, indivisible=keys.indivisible, head=config.head
    )
    shapes = {**config.linears, **({HEAD: config.head} if config.head else {})}
    weights = {name: math.prod(shapes[name]) for name in quantized}
    packed = sum(plan.scheme.of(name).bits_per_weight() * count for name, count in weights.items())
    count = sum(weights.values())
    return packed / count, (packed + 16 * (config.parameters - count)) / config.parameters


class _Sizes:
    """The model's sizes, and what each stage makes of them."""

    def __init__(self, plan: Plan, config: ModelConfig, device: str, offline: bool, processes: int) -> None:
        self.processes = processes
        self.plan, self.config, self.device, self.offline = plan, config, device, offline
        self.width = self._width(plan.model)
        self.quantized = sum(out * width for out, width in config.linears.values())
        self.rest = config.parameters - self.quantized
        self.groups = sum(out * plan.scheme.of(name).groups(width) for name, (out, width) in config.linears.items())
        self.model = config.parameters * self.width
        self.checkpoint = self.quantized + 5 * self.groups + self.rest * 2
        calibration = plan.recipe.calibration
        self.calibration_tokens = calibration.samples * calibration.tokens if calibration else 0

    def of(self, step: Step) -> Estimate:
        memory, disk, extra = getattr(self, f"_{step.stage}")(step)
        return Estimate(step.name, int(memory) + LIBRARIES_BYTES, int(disk), int(disk + extra))

    def _calibrate(self, step: Step) -> tuple[float, float, float]:
        assert isinstance(step.settings, CalibrationKeys)
        return 0, self.calibration_tokens * 8, 0

    def _quantize(self, step: Step) -> tuple[float, float, float]:
        hidden_states = 2 * self.calibration_tokens * self.config.hidden * self.width
        widest = max((width for _, width in self.config.linears.values()), default=0)
        hessians = 4 * widest**2 * FLOAT32 if step.parts["quantizer"].card.needs else 0
        return self.model + self.quantized + hidden_states + hessians, self.checkpoint, 0

    def _train(self, step: Step) -> tuple[float, float, float]:
        keys = step.settings
        assert isinstance(keys, TrainKeys)
        trained = self.quantized + (self.rest if keys.other_lr else 0)
        optimizer = 3 * trained * FLOAT32  # latents and two moments
        gradients = trained * self.width
        teacher = self._teacher(keys.teacher) if step.parts["objective"].card.teacher else 0
        sequences = sequences_at_once(keys.batch, keys.micro_batch, self.processes)
        tokens = sequences * keys.max_tokens
        logits = LOGITS_COPIES * tokens * self.config.vocab * FLOAT32
        kept = tokens * self.width * self._activations(keys)
        cache = self._cache(sequences, keys.max_tokens) if step.parts["objective"].card.writes else 0
        memory = self.model + teacher + optimizer + gradients + logits + kept + cache
        return memory, self.checkpoint + self.quantized * FLOAT32, optimizer + self.model

    def _activations(self, keys: TrainKeys) -> int:
        """Numbers per token that the backward pass needs."""
        blocks, hidden = self.config.blocks, self.config.hidden
        if keys.recomputes(self.device):
            return (blocks + 16) * hidden  # the input of every block, and one block at a time
        # What goes into and comes out of every linear layer, and of norms and rotations beside them.
        return sum(out + width for out, width in self.config.linears.values()) + 6 * blocks * hidden

    def _teacher(self, keys: ModelKeys | None) -> int:
        """Bytes of a teacher; None is the model before quantization."""
        if keys is None:
            return self.model
        try:
            config = read_config(keys, offline=self.offline)
        except RqatError:  # which pre-flight reports
            return self.model
        return config.bytes if config.quantization else config.parameters * self._width(keys)

    def _width(self, keys: ModelKeys) -> int:
        """Bytes of a weight in memory."""
        narrow = keys.dtype == "bfloat16" or (keys.dtype == "auto" and self.device.startswith("cuda"))
        return 2 if narrow else FLOAT32

    def _gate(self, step: Step) -> tuple[float, float, float]:
        keys = step.settings
        assert isinstance(keys, TrainKeys)
        return self.model + self._cache(keys.gate.prompts, keys.max_tokens), 0, 0

    def _export(self, step: Step) -> tuple[float, float, float]:
        try:
            packed = bits_of(self.plan, self.config)[1] * self.config.parameters / 8
        except ModelError:  # which pre-flight reports
            packed = self.config.parameters * 2
        return self.model + self.quantized, packed, 0

    def _evaluate(self, step: Step) -> tuple[float, float, float]:
        keys = step.settings
        assert isinstance(keys, EvaluateKeys)
        tokens = self.config.context or 4096
        if "task" in step.parts:
            tokens = min(tokens, getattr(step.parts["task"].options, "max_new_tokens", tokens) + 512)
        return self.model + self._cache(keys.batch, tokens), 0, 0

    def _cache(self, sequences: int, tokens: int) -> int:
        """Bytes of keys and values of whole sequences, and of one position's logits."""
        raw = self.config.raw
        heads = int(raw.get("num_attention_heads", 1))
        kept = int(raw.get("num_key_value_heads") or heads)
        head = int(raw.get("head_dim") or math.ceil(self.config.hidden / heads))
        per_token = 2 * self.config.blocks * kept * head * self.width
        return sequences * (tokens * per_token + self.config.vocab * FLOAT32)
