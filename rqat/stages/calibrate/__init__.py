"""Calibrate: the text whose activations a quantizer sees."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ...estimate import Needs, Sizes
from ...keys import DataKeys
from ...stage import BASE, Finding, Look, Making, Planned, Section, Stage, Step
from ..produce import Produce


class CalibrationKeys(DataKeys):
    """Text whose activations the quantizer sees: `samples` sequences of `tokens` tokens.

    Attributes:
        samples: sequences.
        tokens: of each sequence.
        pack: join rows into sequences of exactly `tokens` tokens (True), or one row per sequence, cut at `tokens`.
    """

    samples: int = Field(default=128, ge=1)
    tokens: int = Field(default=512, ge=1)
    pack: bool = True

    @property
    def all_tokens(self) -> int:
        """Tokens of all sequences together."""
        return self.samples * self.tokens


class Calibrate(Stage):
    """Tokenizes rows of a source; dropped where no quantizer looks at data."""

    order = 10
    sections = (
        Section(
            "calibration", CalibrationKeys, "may be left out when no quantizer needs statistics.",
            default=None, optional=True,
        ),
    )  # fmt: skip
    only_if_used = True
    of_model = "tokenizer"

    def add(self, making: Making) -> None:
        """See `Stage`."""
        keys: CalibrationKeys | None = making.recipe.calibration
        if keys is not None:
            place = making.place.at("calibration")
            source = making.use("source", keys, place)
            produced = Produce().add_before(making, keys, place, source)
            making.add(self, "calibrate", BASE, keys, place, {"source": source}, produced)

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        assert isinstance(step.settings, CalibrationKeys)
        return Needs(disk=step.settings.all_tokens * 8)

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, CalibrationKeys)
        context = look.config.context if look.config else None
        if context is not None and keys.tokens > context:
            text = f"{keys.tokens} tokens, but the model's context is {context}."
            yield step.finding("error", "tokens", text, f"Use at most {context}.")
        if keys.split == "test":
            yield step.finding(
                "warning", "split", "this reads the test split.", "Scores on that data will say nothing; use train."
            )

    def label(self, step: Step) -> str:
        """See `Stage`."""
        return "calibration"
