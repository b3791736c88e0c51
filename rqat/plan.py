"""Recipe + registry -> Plan: defaults filled in, owner and version of each part, fingerprints, pre-flight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .contracts import Options
from .keys import Keys, ModelKeys, PluginKeys, Recipe
from .registry import Card
from .scheme import Scheme

Stage = Literal["calibrate", "quantize", "train", "gate", "export", "evaluate"]


@dataclass(frozen=True)
class Use:
    """A part with its validated options."""

    card: Card
    options: Options


@dataclass(frozen=True)
class Step:
    """One unit of work, done by `rqat.stages.<stage>.run(job, step)`, in a folder of its own.

    Attributes:
        name: folder name, "04-train-kd".
        stage: which stage module runs it.
        arm: name of the model this step makes or evaluates: "bf16", a quantizer's or an objective's name.
        settings: the recipe's keys for it.
        parts: plugins it uses, by role: "source", "quantizer", "objective", "task", "exporter".
        inputs: names of earlier steps, by role: "calibration" (of quantize), "start" (the quantized model that train,
            gate, export and evaluate begin from; missing for the arm "bf16").
    """

    name: str
    stage: Stage
    arm: str
    settings: Keys | PluginKeys
    parts: dict[str, Use] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know, before torch is imported.

    Attributes:
        recipe: with every default filled in.
        scheme: the weight grid.
        steps: in order.
    """

    recipe: Recipe
    scheme: Scheme
    steps: tuple[Step, ...]

    @property
    def model(self) -> ModelKeys:
        """The model to compress."""
        return self.recipe.model

    def facts(self, step: Step) -> dict[str, Any]:
        """Everything that decides the result of a step, as JSON: the fingerprint is its hash (see `storage`)."""
        raise NotImplementedError
