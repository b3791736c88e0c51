"""Every key of a recipe, with its default: what `recipe.py` validates, `plan.py` fills in and the stages read.

Keys a plugin owns (`damp` of gptq, `temperature` of kd) stand beside the host's in the same mapping; here they are
pydantic "extras", and `plan.py` validates them with the plugin's own `Options`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from .contracts import Split


class Keys(BaseModel):
    """A mapping with the host's keys only."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PluginKeys(BaseModel):
    """A mapping that also carries the options of one plugin."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """What is left for the plugin."""
        return dict(self.model_extra or {})


class ModelKeys(Keys):
    """Which model. In a recipe a plain string is short for `{path: ...}`.

    Attributes:
        path: folder, hub name, or `builtin:tiny-reasoner`.
        revision: hub revision; None is the default branch.
        dtype: dtype of the model in memory; `auto` is float32 on CPU and bfloat16 on CUDA.
        trust_remote_code: run modelling code that comes with the checkpoint.
    """

    path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    trust_remote_code: bool = False


class DataKeys(PluginKeys):
    """Rows from a source; what remains are the source's options."""

    source: str
    split: Split = "train"
    seed: int = 0


class CalibrationKeys(DataKeys):
    """Text whose activations the quantizer sees: `samples` sequences of `tokens` tokens.

    Attributes:
        pack: join rows into sequences of exactly `tokens` tokens (True), or one row per sequence, cut at `tokens`.
    """

    samples: int = Field(default=128, ge=1)
    tokens: int = Field(default=512, ge=1)
    pack: bool = True


class QuantizeKeys(PluginKeys):
    """A quantizer by name; what remains are its options.

    Attributes:
        method: name of the quantizer.
        skip: linear layers left as they are: shell patterns on full names (`model.layers.0.*`, `*.down_proj`).
        indivisible: what to do with layers whose input features do not split into whole groups.
    """

    method: str
    skip: tuple[str, ...] = ()
    indivisible: Literal["error", "skip"] = "error"


class GateKeys(Keys):
    """The cold-start gate before an objective that is trained on rewards.

    Attributes:
        prompts: prompts sampled from the training rows.
        samples: completions per prompt.
        pass_rate: least share of correct completions.
        signal: least share of prompts whose completions are neither all right nor all wrong.
        action: stop the run, skip the objective, or only warn when a floor is missed.
    """

    prompts: int = Field(default=32, ge=1)
    samples: int = Field(default=4, ge=2)
    pass_rate: float = Field(default=0.05, ge=0, le=1)
    signal: float = Field(default=0.1, ge=0, le=1)
    action: Literal["stop", "skip", "warn"] = "stop"


class RewardKeys(PluginKeys):
    """One reward; what remains are its options. In a recipe a plain number is short for `{weight: ...}`.

    Attributes:
        weight: what its score counts in the sum of all rewards.
    """

    weight: float = Field(default=1.0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"weight": value} if number else value


class TrainKeys(PluginKeys):
    """One objective; what remains are its options.

    Attributes:
        objective: name of the objective.
        data: rows to train on.
        teacher: another model to distil from, with the same tokenizer; None is the model before quantization.
        task: whose grader judges completions, for objectives that are trained on rewards.
        rewards: what such an objective is trained on: rewards by name, each with its weight, or with `weight` and
            options of its own (`{correct: 1.0, length: {weight: -0.1}}`). None is `{correct: 1.0}`.
        steps: optimizer steps.
        batch: sequences per optimizer step (completions per step, where the objective is trained on rewards).
        micro_batch: sequences per forward pass; `batch` is a multiple of it, times the processes that train together.
            None is the whole batch, or a process's share of it.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: far less memory
            for about a third more time. None is yes on CUDA and no on the CPU.
        max_tokens: longest prompt plus completion; longer rows are left out and counted.
        optimizer: name of a torch.optim class.
        lr: learning rate of the latent weights.
        scale_lr: of the scales, relative to the scale itself. None freezes the scales.
        zero_lr: of the zero points, in codes. None freezes the zero points.
        other_lr: of everything that is not quantized, embeddings and lm_head left out. None freezes it.
        schedule: a transformers schedule name.
        warmup: share of the steps with a rising learning rate.
        weight_decay: of the latent weights.
        max_grad_norm: gradient clipping, global norm.
        save_every: optimizer steps between checkpoints, from which an interrupted run resumes.
        gate: the cold-start gate, for objectives that are trained on rewards.
        seed: order of the data and sampling.
    """

    objective: str
    data: DataKeys
    teacher: ModelKeys | None = None
    task: str | None = None
    rewards: dict[str, RewardKeys] | None = Field(default=None, min_length=1)
    steps: int = Field(ge=1)
    batch: int = Field(default=16, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    gradient_checkpointing: bool | None = None
    max_tokens: int = Field(default=2048, ge=2)
    optimizer: str = "AdamW"
    lr: float = Field(default=2e-5, gt=0)
    scale_lr: float | None = Field(default=None, gt=0)
    zero_lr: float | None = Field(default=None, gt=0)
    other_lr: float | None = Field(default=None, gt=0)
    schedule: str = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    save_every: int = Field(default=50, ge=1)
    gate: GateKeys = GateKeys()
    seed: int = 0

    def recomputes(self, device: str) -> bool:
        """Whether activations are computed again in the backward pass on a device."""
        return device != "cpu" if self.gradient_checkpointing is None else self.gradient_checkpointing


class ExportKeys(PluginKeys):
    """A checkpoint format by name; what remains are its options."""

    format: str = "compressed-tensors"


class EvaluateKeys(PluginKeys):
    """A task by name, or any lm-eval task; what remains are the task's options.

    Attributes:
        task: name of the task.
        limit: use the first `limit` problems only. None is all.
        batch: sequences per generation batch.
        variants: which models to evaluate: any of `bf16`, quantizer names, objective names. None is all.
    """

    task: str
    limit: int | None = Field(default=None, ge=1)
    batch: int = Field(default=32, ge=1)
    variants: tuple[str, ...] | None = None


def _spelled_scheme(value: Any) -> Any:
    """Refuses what is neither text nor a mapping of texts, in words that name the entry."""
    if not isinstance(value, str | dict):
        raise ValueError(f"{value!r} is not text.")
    for pattern, text in value.items() if isinstance(value, dict) else ():
        if not isinstance(text, str):
            raise ValueError(f"'{pattern}' is {text!r}, which is not the spelling of a scheme.")
    return value


class Recipe(Keys):
    """A whole recipe: calibrate, quantize, train, export, evaluate, in this order.

    Attributes:
        name: of the run; its folder is `runs/<name>` unless `-o` says otherwise.
        model: the model to compress, and the teacher of objectives that need one and name no other.
        scheme: spelling of the weight grid ("w2g128"), or a mapping of `default` and shell patterns on full names of
            layers to spellings (`{default: w2g128, "*.down_proj": w3g128, lm_head: w8g128}`); of several patterns that
            match, the longest counts. The head is quantized only where a pattern names it.
        calibration: may be left out when no quantizer needs statistics.
        quantize: the quantizer whose result is trained, exported and evaluated.
        compare: quantizers that are only evaluated, for comparison.
        train: objectives, in order.
        export: None writes no checkpoint for servers.
        evaluate: tasks, each on every variant.
    """

    name: str
    model: ModelKeys
    scheme: Annotated[str | dict[str, str], BeforeValidator(_spelled_scheme)] = "w2g128"
    calibration: CalibrationKeys | None = None
    quantize: QuantizeKeys
    compare: tuple[QuantizeKeys, ...] = ()
    train: tuple[TrainKeys, ...] = ()
    export: ExportKeys | None = ExportKeys()
    evaluate: tuple[EvaluateKeys, ...] = ()
