"""What a plugin implements (Quantizer, Objective, Source, Task, Exporter) and what passes between it and the host.

Dimension letters, here and everywhere: `O` out features, `I` in features, `G` groups of input features, `T` tokens,
`B` batch, `V` vocabulary. Importing this file does not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

from pydantic import BaseModel, ConfigDict

from .scheme import Scheme

if TYPE_CHECKING:
    import datasets
    import torch
    import transformers

Statistic = Literal["hessian", "absmean"]
"""What a quantizer may ask to be collected about the input of a linear layer; see `LinearStats`."""

Split = Literal["train", "validation", "test"]

Verdict = Literal["correct", "wrong", "unverifiable"]
"""`unverifiable`: the checker ran out of time or crashed on this answer; counted by itself, never as correct."""


class Options(BaseModel):
    """Base class of every plugin's options: a pydantic model that refuses unknown keys.

    In a recipe the options stand beside the host's own keys (`quantize: {method: gptq, damp: 0.01}`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


# ---------------------------------------------------------------------------------------------------- quantizers


@dataclass(frozen=True)
class QuantizedWeight:
    """One quantized linear layer: `w_hat = (codes - zero) * scale`, per group of input features.

    Attributes:
        codes: `(O, I)` uint8, 0 to `2**bits - 1`.
        scale: `(O, G)` float32, positive, representable in both bfloat16 and float16 (`rqat_kernels.grid.snap_scale`).
        zero: `(O, G)` uint8, an integer zero point on the same range as the codes.
        note: what the report should say about this layer, e.g. why it fell back to rounding. Empty when all went well.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    note: str = ""


@dataclass
class LinearStats:
    """What was seen at the input `x` of a linear layer over all calibration tokens. Layers with one input share it.

    Attributes:
        tokens: number of tokens `T` seen.
        hessian: `(I, I)` float32, `1/T * sum_t x_t x_t^T`; None unless asked for.
        absmean: `(I,)` float32, `1/T * sum_t |x_t|`; None unless asked for.
    """

    tokens: int = 0
    hessian: torch.Tensor | None = None
    absmean: torch.Tensor | None = None


@dataclass(frozen=True)
class SharedInput:
    """Linear layers that read the same input, e.g. q, k and v.

    Attributes:
        names: the layers, named inside the block ("self_attn.q_proj").
        before: the module whose output is that input up to element-wise scaling (a norm, or a linear layer), so that
            `x / s` can be folded into it; None when there is none.
    """

    names: tuple[str, ...]
    before: str | None = None


@dataclass
class Block:
    """One decoder layer, in memory, with everything before it already quantized.

    Attributes:
        name: where the block sits in the model ("model.layers.3").
        module: the decoder layer; a quantizer may change modules named by `SharedInput.before` in place.
        inputs: the quantizable linear layers, grouped by shared input, in the order in which data passes them.
    """

    name: str
    module: torch.nn.Module
    inputs: Sequence[SharedInput]

    def linear(self, name: str) -> torch.nn.Linear:
        """The linear layer called `name` inside this block."""
        return self.module.get_submodule(name)  # type: ignore[return-value]

    def names(self) -> list[str]:
        """Every quantizable linear layer of this block, named inside the block."""
        return [name for group in self.inputs for name in group.names]


class Quantizer(ABC):
    """Turns the weights of a model into codes, without training.

    A plugin implements `quantize_linear`; it overrides `quantize_block` only when layers depend on each other, as in
    AWQ, which folds scales into the module before.

    Class attributes:
        needs: statistics to collect at the input of every layer; exactly these are there when `quantize_linear` runs.
    """

    needs: ClassVar[frozenset[Statistic]] = frozenset()

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def quantize_linear(self, weight: torch.Tensor, stats: LinearStats, scheme: Scheme) -> QuantizedWeight:
        """Quantizes one weight.

        Args:
            weight: `(O, I)` float32, finite; must not be changed. `scheme.divides(I)` holds.
            stats: what `needs` asked for.
            scheme: bits, group and symmetry to hit.
        """

    def quantize_block(
        self, block: Block, stats: Mapping[str, LinearStats], scheme: Scheme
    ) -> dict[str, QuantizedWeight]:
        """Quantizes every linear layer of a block; keys of `stats` and of the result are names inside the block."""
        return {
            name: self.quantize_linear(block.linear(name).weight.detach().float(), stats[name], scheme)
            for name in block.names()
        }


# ---------------------------------------------------------------------------------------------------- data


class Row(TypedDict, total=False):
    """One example. Either `text` alone, or `prompt` with `completion`; `answer` where the completion can be graded.

    An objective that writes its own completions needs `prompt` and `answer` only.
    """

    text: str
    prompt: str
    completion: str
    answer: str


class Source(ABC):
    """Rows to calibrate on or to train on."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def rows(self, split: Split, seed: int) -> Iterator[Row]:
        """Yields rows; the same arguments give the same rows in the same order, on every machine.

        Raises:
            DataError: the data is missing, empty, or a row is malformed (with file and line).
        """

    def combine(self, parts: Sequence[Source]) -> None:  # noqa: B027 (most sources are made of nothing else)
        """Receives the sources named by an option of type `list[rqat.Part]`, built by the host, in order."""


class Part(BaseModel):
    """One part of a source made of others: `{source: gsm8k, weight: 0.8, ...options of that source}`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    source: str
    weight: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """The options of the named source, not yet validated."""
        return dict(self.model_extra or {})


# ---------------------------------------------------------------------------------------------------- tasks


class TaskOptions(Options):
    """Options every task has; a task's own options derive from it.

    Attributes:
        data: file to read the problems from, for tasks that keep theirs in a file.
        max_new_tokens: tokens after which a completion is cut off.
        temperature: 0 is greedy.
        top_p: nucleus sampling bound, used when `temperature > 0`.
        seeds: one run per seed; with `temperature: 0` one is enough.
        chat: wrap the prompt in the tokenizer's chat template; `auto` does it when the tokenizer has one.
    """

    data: str | None = None
    max_new_tokens: int = 2048
    temperature: float = 0.0
    top_p: float = 1.0
    seeds: tuple[int, ...] = (42,)
    chat: Literal["auto", "yes", "no"] = "auto"


class Task(ABC):
    """Problems with answers that can be checked: what `rqat eval` runs and what rewards are computed from."""

    def __init__(self, options: TaskOptions) -> None:
        self.options = options

    @abstractmethod
    def problems(self) -> Sequence[Row]:
        """Rows with `prompt` and `answer`, always in the same order.

        Raises:
            DataError: the file is missing or malformed.
        """

    @abstractmethod
    def grade(self, completion: str, answer: str) -> Verdict:
        """Whether a completion ends in the answer."""


# ---------------------------------------------------------------------------------------------------- objectives


@dataclass
class Training:
    """What the train stage hands an objective to build its trainer from.

    Attributes:
        model: a plain Hugging Face model whose weights are on the grid.
        tokenizer: its tokenizer.
        rows: training rows in the order they are used, one for each place in a batch (see `rqat.train.data`). Columns
            `prompt` (text, or a list of one user message for a tokenizer with a chat template), `answer`,
            `prompt_tokens`; and, unless the card says `rollouts=True`, `completion`, `input_ids` and `labels` (-100 on
            the prompt).
        optimizer: the `QuantizedOptimizer` over `model`; goes into the trainer as `optimizers=(optimizer, scheduler)`.
        scheduler: the learning-rate schedule over `optimizer`.
        arguments: settings every TRL config takes: output_dir, max_steps, per_device_train_batch_size,
            gradient_accumulation_steps, seed, use_cpu, bf16, save_steps, logging_steps, report_to, max_grad_norm, ...
        max_tokens: longest prompt plus completion, in tokens.
        teacher: the model before quantization or the one the recipe names, frozen, in eval mode; None unless the card
            says `teacher=True`. Its tokens are the student's; its logits may be wider (padding of the vocabulary).
        grade: `(completion, answer) -> Verdict`; None unless the recipe names a task for rewards.
        callbacks: to be passed to the trainer as they are.
        processes: how many train together, each on its share of a batch.
    """

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    rows: datasets.Dataset
    optimizer: torch.optim.Optimizer
    scheduler: Any
    arguments: dict[str, Any]
    max_tokens: int
    teacher: transformers.PreTrainedModel | None = None
    grade: Callable[[str, str], Verdict] | None = None
    callbacks: list[Any] = field(default_factory=list)
    processes: int = 1


class Objective(ABC):
    """What a quantized model is trained for. No training loop: an objective names a TRL trainer and what it changes."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def build_trainer(self, training: Training) -> transformers.Trainer:
        """Builds a trainer; the host calls `train(resume_from_checkpoint=...)` on it.

        The loss is a mean over unmasked tokens, so that learning rates carry over between batch sizes.
        """


# ---------------------------------------------------------------------------------------------------- exporters


class Exporter(ABC):
    """Writes quantized layers in the layout of one checkpoint format. The host writes everything else.

    Class attributes:
        loader_packages: what must be installed, beside transformers, to load the checkpoint with `from_pretrained`;
            where it is, the export stage does so and compares logits. None: transformers cannot load it.
        loader_tolerance: largest difference allowed then, as a share of the largest logit, in float32 on the CPU.
        serving: Markdown for the README.md beside the checkpoint: how to serve it, and what servers do not support.
    """

    loader_packages: ClassVar[tuple[str, ...] | None] = None
    loader_tolerance: ClassVar[float] = 0.0
    serving: ClassVar[str] = ""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def tensors(self, name: str, weight: QuantizedWeight, scheme: Scheme) -> dict[str, torch.Tensor]:
        """Tensors of one layer under their full names (`name + ".weight_packed"`)."""

    @abstractmethod
    def config(self, scheme: Scheme, layers: Sequence[str], skipped: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config` of the checkpoint's config.json.

        Args:
            layers: full names of the quantized linear layers.
            skipped: full names of the linear layers left as they were, lm_head among them.
        """

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
        """The inverse of `tensors`; optional. With it, the export stage checks every layer bit by bit."""
        raise NotImplementedError
