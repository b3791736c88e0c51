"""Export: a quantized model as files that servers load."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from ...errors import ModelError
from ...estimate import Needs, Sizes, bits_of
from ...keys import PluginKeys
from ...stage import Finding, Look, Making, Planned, Section, Stage, Step


class ExportKeys(PluginKeys):
    """A checkpoint format by name; what remains are its options."""

    named_by: ClassVar[str] = "format"
    kinds: ClassVar[tuple[str, ...]] = ("exporter",)

    format: str = "compressed-tensors"


class Export(Stage):
    """Writes the last model in one format, and reads it back."""

    order = 40
    sections = (
        Section(
            "export", ExportKeys, "None writes no checkpoint for servers.", default=ExportKeys(), optional=True
        ),
    )  # fmt: skip
    of_scheme = True
    checkpoint = "model"
    title = "Export check"
    about = "The exported files, read back and compared with the model that was evaluated."

    def add(self, making: Making) -> None:
        """See `Stage`."""
        keys: ExportKeys | None = making.recipe.export
        if keys is not None and making.last in making.made:
            place = making.place.at("export")
            use = making.use("exporter", keys, place)
            start = {"start": making.made[making.last]}
            making.add(self, "export", making.last, keys, place, {"exporter": use}, start)

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """See `Stage`."""
        made: Step | None = step
        while made is not None:
            hooked = [use.card.name for use in made.parts.values() if use.card.hooks]
            if hooked:
                text = f"{', '.join(hooked)} adds forward hooks, which no checkpoint format holds."
                fix = "Set `export: null`: `rqat eval` and `rqat generate` take the folder of a step."
                yield step.finding("error", "", text, fix)
            made = look.plan.step(made.inputs["start"]) if "start" in made.inputs else None

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        parameters = sizes.config.parameters
        try:
            bits = bits_of(plan.schemes(step, sizes.config), sizes.config)[1]
        except ModelError:  # which pre-flight reports
            bits = 16
        return Needs(sizes.model + sizes.quantized, bits * parameters / 8)
