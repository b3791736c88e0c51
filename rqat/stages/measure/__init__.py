"""Measure: what every width of every layer would cost, on text that calibrates nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...budget import Offer, offer
from ...estimate import FLOAT32, Needs, Sizes
from ...keys import Keys
from ...model.config import ModelConfig
from ...model.memory import BACKWARD_TOKENS
from ...stage import BASE, Making, Planned, Stage, Step, Use
from ..calibrate import CalibrationKeys
from ..produce import Produce

FILE = "costs.json"
"""What was found, in the folder of a finished step; see `run.py`."""


class MeasureSettings(Keys):
    """What a measure step is told; a budget's size and its file format count only where the choice is made.

    Attributes:
        widths, ends, together, samples: see `rqat.stages.budget.BudgetKeys`.
        skip, indivisible: of the quantizer.
        tokens, pack, split, seed, behind: how the text is read, and how many sequences are the calibration's.
    """

    widths: tuple[int, ...]
    ends: tuple[int, ...]
    together: bool
    samples: int
    skip: tuple[str, ...]
    indivisible: str
    tokens: int
    pack: bool
    split: str
    seed: int
    behind: int

    @classmethod
    def of(cls, budget: Any, quantize: Any, data: CalibrationKeys) -> MeasureSettings:
        """What the keys of a budget, of a quantizer and of its calibration come to.

        Args:
            budget: with `together` said.
        """
        return cls(
            widths=budget.widths,
            ends=budget.ends,
            together=budget.together,
            samples=budget.samples,
            skip=quantize.skip,
            indivisible=quantize.indivisible,
            tokens=data.tokens,
            pack=data.pack,
            split=data.split,
            seed=data.seed,
            behind=data.samples,
        )


class Measure(Stage):
    """Tries every width of every layer; the budget stage adds it before itself."""

    order = 11
    only_if_used = True
    of_scheme = True
    borrows = True

    def add_before(
        self, making: Making, keys: Any, quantize: Any, parts: Mapping[str, Use | None], calibration: str
    ) -> str:
        """Adds the step; its name.

        Args:
            keys: of the budget.
            quantize: the quantizer's keys.
            parts: the quantizer and what stands before it.
            calibration: name of the calibrate step.
        """
        data: CalibrationKeys = making.recipe.calibration
        place = making.place.at("calibration")
        source = making.use("source", data, place)
        settings = MeasureSettings.of(keys, quantize, data)
        inputs = {"calibration": calibration} | Produce().add_before(making, data, place, source)
        return making.add(
            self, "measure", BASE, settings, making.place.at("budget"), {"source": source, **parts}, inputs
        )

    def offer(self, step: Step, plan: Planned, config: ModelConfig, *, embedding: bool = True) -> Offer:
        """What is tried; without `embedding`, that of it which a file can hold that packs none.

        Raises:
            ModelError: layers cannot be quantized as asked.
        """
        keys = step.settings
        assert isinstance(keys, MeasureSettings)
        return offer(
            plan.scheme, keys.widths, keys.ends, embedding,
            linears=config.linears, end_shapes=config.ends, layout=config.layout, blocks=config.blocks,
            skip=keys.skip, indivisible=keys.indivisible, together=keys.together,
        )  # fmt: skip

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, MeasureSettings)
        config = sizes.config
        widest = max((width for _, width in config.linears.values()), default=0)
        matrices = (3 * config.hidden**2 + 5 * widest**2) * FLOAT32
        kept = min(keys.samples * keys.tokens, max(BACKWARD_TOKENS[sizes.device], keys.tokens))
        backward = kept * config.hidden * (config.blocks + 4) * sizes.width
        backward += 3 * keys.tokens * config.vocab * FLOAT32
        logits = min(2 * keys.samples * keys.tokens * config.vocab, 1 << 29)
        states = (keys.behind + keys.samples) * keys.tokens * config.hidden * sizes.width
        swapped = sizes.model  # while many layers are quantized for a measurement, what they were before is kept
        tries = len(keys.widths) * (sizes.quantized + 5 * sizes.groups)
        mapped = tries if sizes.device == "cpu" else 0  # files of tries that are read from count as memory there
        return Needs(sizes.model + states + mapped + max(matrices, backward, logits + swapped), 1 << 20, tries)
