"""Produce: what a source writes with the model before quantization, kept for every step that reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from ...contracts import ComparisonOptions, Split
from ...estimate import PROMPT_TOKENS, Needs, Sizes
from ...keys import DataKeys, Keys, Neutral
from ...problems import Place
from ...stage import BASE, PRODUCED, Making, Planned, Stage, Step, Use

ROWS_AT_ONCE = 32
"""Completions that are written together, unless a source says otherwise."""


class ProduceSettings(Keys):
    """What a produce step is told: how the steps that read the source read it.

    Attributes:
        source: whose it is.
        split: which rows.
        seed: their order, and of the sampling.
    """

    source: Annotated[str, Neutral("it stands among the parts")]
    split: Split
    seed: int


class Produce(Stage):
    """Lets a source whose card says `model=True` write its rows; whoever reads such a source adds the step."""

    order = 5
    only_if_used = True
    title = "Rows written by the model"
    about = "By the model before quantization, for sources that ask for it; written once, and read by every step."

    def add_before(self, making: Making, keys: DataKeys, place: Place, *sources: Use | None) -> dict[str, str]:
        """Adds a step for every source that asks for the model, at any depth; one that is there already is shared.

        Args:
            sources: what the step reads that they are added before.

        Returns:
            inputs of that step: names of steps by role, see `rqat.stage.Step.reads`.
        """
        found: dict[str, str] = {}
        for use in (inner for source in sources if source is not None for inner in source.all()):
            if use.card.model:
                found[PRODUCED if not found else f"{PRODUCED}-{len(found) + 1}"] = self._add(making, keys, place, use)
        return found

    def add_for(self, making: Making, task: Use, place: Place) -> list[str]:
        """Adds such steps for the sources of a task that compares models; their names."""
        if not isinstance(task.options, ComparisonOptions):
            return []
        split, seed = task.options.split, task.options.seed
        found: dict[str, None] = {}
        for part, _ in task.sources:
            keys = DataKeys(source=part.card.name, split=split, seed=seed)
            found |= dict.fromkeys(self.add_before(making, keys, place, part).values())
        return list(found)

    def _add(self, making: Making, keys: DataKeys, place: Place, use: Use) -> str:
        settings = ProduceSettings(source=use.card.name, split=keys.split, seed=keys.seed)
        parts = {"source": use}
        there = making.same(self, settings, parts)
        if there:
            return there
        inputs = self.add_before(making, keys, place, *(part for part, _ in use.sources))
        return making.add(self, f"produce-{use.card.name}", BASE, settings, place, parts, inputs)

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        options = step.parts["source"].options
        new = getattr(options, "max_new_tokens", None) or 2048
        tokens = min(sizes.config.context or new, new) + PROMPT_TOKENS
        rows = getattr(options, "batch", None) or ROWS_AT_ONCE
        passing = sizes.engine_passing(rows, PROMPT_TOKENS, nucleus=getattr(options, "top_p", 1.0) < 1)
        return Needs(sizes.model + sizes.written(rows, tokens) + passing)

    def lighter(self, step: Step, device: str) -> dict[str, Any]:
        """See `Stage`."""
        batch = getattr(step.parts["source"].options, "batch", None)
        return {"batch": batch // 2} if isinstance(batch, int) and batch > 1 else {}

    def changed(self, step: Step, key: str, value: Any) -> Step:
        """See `Stage`; it is an option of the source."""
        use = step.parts["source"]
        lighter = replace(use, options=use.options.model_copy(update={key: value}))
        return replace(step, parts={**step.parts, "source": lighter})
