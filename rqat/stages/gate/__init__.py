"""Gate: whether a model gets enough right for learning from its own completions; stands before such an objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...estimate import Needs, Sizes
from ...keys import DataKeys, Keys, Neutral
from ...problems import Place
from ...stage import Making, Planned, Stage, Step, Use


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

    @model_validator(mode="after")
    def _possible(self) -> GateKeys:
        """A prompt that carries signal has a wrong completion, at least, so that the floors bound one another."""
        most = 1 - self.signal / self.samples
        if self.pass_rate > most + 1e-9:
            raise ValueError(
                f"no model can pass: where {self.signal:g} of the prompts have a wrong completion among "
                f"{self.samples}, at most {most:g} are correct, and pass_rate asks for {self.pass_rate:g}. Lower one."
            )
        return self


class GateSettings(Keys):
    """What a gate step is told: its own keys, and what it shares with the objective behind it.

    Attributes:
        objective: whose gate it is.
        batch: completions written together.
        temperature: and the two below: how the objective samples, its own defaults included.
    """

    objective: Annotated[str, Neutral("named in messages only")]
    gate: GateKeys
    data: DataKeys
    max_tokens: int
    seed: int
    batch: Annotated[int, Neutral("how many fit into memory")]
    temperature: float = 1.0
    top_p: float = 1.0
    max_completion_tokens: int | None = None

    @classmethod
    def before(cls, keys: Any, objective: Use | None) -> GateSettings:
        """The gate before a training with `keys` (those of `train`)."""
        shared = {name: getattr(keys, name) for name in ("objective", "gate", "data", "max_tokens", "seed")}
        sampling = {
            name: getattr(objective.options, name)
            for name in ("temperature", "top_p", "max_completion_tokens")
            if objective is not None and hasattr(objective.options, name)
        }
        return cls(**shared, batch=keys.micro_batch if isinstance(keys.micro_batch, int) else keys.batch, **sampling)


class Gate(Stage):
    """Samples some prompts before an objective is trained; the train stage adds it."""

    order = 25
    title = "Cold-start gate"
    about = "Measured before learning from own completions: does the model solve some problems, some of the time?"

    def add_before(
        self,
        making: Making,
        keys: Any,
        place: Place,
        variant: str,
        parts: Mapping[str, Use | None],
        inputs: Mapping[str, str],
    ) -> str:
        """Adds the gate before a training with `keys` and the same `inputs`; returns the gate's name."""
        settings = GateSettings.before(keys, parts["objective"])
        own = {role: use for role, use in parts.items() if role != "objective"}
        return making.add(self, f"gate-{variant}", variant, settings, place, own, inputs)

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, GateSettings)
        return Needs(sizes.model + sizes.written(keys.gate.prompts * keys.gate.samples, keys.max_tokens))
