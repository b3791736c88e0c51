"""Export: a quantized model as files that servers load."""

from __future__ import annotations

from typing import ClassVar

from ...errors import ModelError
from ...estimate import Needs, Sizes, bits_of
from ...keys import PluginKeys
from ...stage import Making, Planned, Section, Stage, Step


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

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        parameters = sizes.config.parameters
        try:
            bits = bits_of(plan.schemes(step, sizes.config), sizes.config)[1]
        except ModelError:  # which pre-flight reports
            bits = 16
        return Needs(sizes.model + sizes.quantized, bits * parameters / 8)
