"""Budget: how many bytes the quantized model may take, and a width for every layer that keeps within them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from ...budget import UNQUANTIZED, Offer, between, bounds, budget_bytes
from ...cards import Card
from ...contracts import Context
from ...contracts.options import in_file
from ...errors import PluginError, RqatError
from ...estimate import Needs, Sizes
from ...keys import Keys
from ...model.config import ModelConfig
from ...model.layers import described
from ...scheme import BITS, DEFAULT, Scheme
from ...servers import fused
from ...stage import BASE, Finding, Look, Making, Planned, Section, Stage, Step, Use
from ..measure import Measure

FILE = "scheme.json"
"""The choice, in the folder of a finished step; see `run.py`."""


def _a_size(text: str) -> str:
    try:
        budget_bytes(text, 1 << 40)
    except RqatError as error:
        raise ValueError(str(error)) from None
    return text


def _are_widths(given: Sequence[int], known: Sequence[int]) -> tuple[int, ...]:
    wrong = [bits for bits in given if bits not in known]
    if wrong or not given:
        raise ValueError(f"{list(given)} are no widths; choose from {', '.join(map(str, known))}.")
    return tuple(sorted({*given}))


class BudgetKeys(Keys):
    """A size for the file with the weights; a width is chosen for every layer that no pattern of `scheme` names.

    The scheme's default says group, zero points and grid; its width counts for nothing then. In a recipe a plain text
    or number is short for `{size: ...}`.

    Attributes:
        size: bytes (`420MB`, `1.2GB`; powers of ten), or bits per parameter in all (`2.8bits`, or a plain `2.8`).
        widths: bits that layers of the blocks may get.
        ends: bits that the embedding and a head of its own may get; 16 leaves them as they are, which is all there is
            for an embedding in formats that pack none.
        together: layers that read one input (queries, keys and values; gate and up) get one width, as servers want that
            compute them as one (vLLM); else each gets its own, which costs less KL. Left out, it is true for formats
            that such a server was seen to load.
        samples: sequences of the calibration's source, behind those of the calibration, on which costs are measured.
    """

    named_by: ClassVar[str] = "size"
    number_for: ClassVar[str] = "size"

    size: Annotated[str, AfterValidator(_a_size)]
    widths: tuple[int, ...] = BITS
    ends: tuple[int, ...] = (3, 4, 8, 16)
    together: bool | None = None
    samples: int = Field(default=16, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _a_number(cls, given: Any) -> Any:
        """A plain number is bits per parameter."""
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            given = {"size": given}
        if isinstance(given, dict) and type(given.get("size")) in (int, float):
            given = given | {"size": f"{given['size']}bits"}
        return given

    def of_format(self, exporter: Card | None) -> BudgetKeys:
        """With `together` said, for files of an exporter; None: there is no file."""
        if self.together is not None:
            return self
        return self.model_copy(update={"together": exporter is not None and fused(exporter.name)})

    def missing_in(self, grid: Card) -> str:
        """Which of the widths a grid does not have, in a sentence; "" where it has all."""
        wrong = sorted({*self.widths, *self.ends} - {*grid.bits, UNQUANTIZED})
        if not wrong:
            return ""
        has, lacks = (", ".join(map(str, bits)) for bits in (grid.bits, wrong))
        return f"the scheme's grid '{grid.name}' has {has} bits, not {lacks}; set budget.widths and budget.ends."

    @field_validator("widths")
    @classmethod
    def _widths(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        return _are_widths(given, BITS)

    @field_validator("ends")
    @classmethod
    def _ends(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        return _are_widths(given, (*BITS, UNQUANTIZED))


class BudgetSettings(Keys):
    """What a budget step is told.

    Attributes:
        size: see `BudgetKeys`.
        embedding: whether the file packs an embedding.
    """

    size: str
    embedding: bool


class Budget(Stage):
    """Chooses the widths by what each costs and takes; the quantize stage adds it before itself."""

    order = 12
    sections = (
        Section(
            "budget", BudgetKeys, "a size for the quantized model, in place of one width for all; None is none.",
            default=None, optional=True,
        ),
    )  # fmt: skip
    only_if_used = True
    of_scheme = True
    borrows = True
    title = "Widths within the budget"
    about = "Chosen by what each costs in KL to the original, on rows that calibrated nothing."

    def add(self, making: Making) -> None:
        """Refuses a budget where nothing is quantized; the step itself is added by `add_before`."""
        recipe, place = making.recipe, making.place.at("budget")
        if recipe.budget is None:
            return
        if recipe.start is not None:
            making.problem(f"{place}: there is `start`, whose layers have their widths; a budget needs `quantize`.")
        elif recipe.quantize is None and "quantize" in recipe.model_fields_set:
            making.problem(f"{place}: nothing is quantized here; a budget needs `quantize`.")

    def add_before(
        self, making: Making, quantize: Any, parts: Mapping[str, Use | None], calibration: str
    ) -> dict[str, str]:
        """Adds the step, and the measuring, in front of a quantizer, if the recipe asks for a budget.

        Args:
            quantize: the quantizer's keys.
            parts: the quantizer and what stands before it.
            calibration: name of the calibrate step; "" where there is none.

        Returns:
            what the quantize step takes from it, by role.
        """
        keys: BudgetKeys | None = making.recipe.budget
        if keys is None:
            return {}
        at = making.place.at("budget")
        there = making.find(self.name)
        if there:
            return {self.name: there}
        if not calibration:
            wanted = "give --calibration SOURCE" if str(at) == "--budget" else "add `calibration: {source: ...}`"
            making.problem(f"{at}: what a width costs is measured on text; {wanted}.")
            return {}
        if lacking := next(filter(None, map(keys.missing_in, _default_grid(making))), ""):
            making.problem(f"{at}: {lacking}")
            return {}
        export = making.recipe.export
        exporter = None if export is None else making.use("exporter", export, making.place.at("export"))
        card = None if exporter is None else exporter.card
        settings = BudgetSettings(size=keys.size, embedding=packs_embedding(card))
        measured = Measure().add_before(making, keys.of_format(card), quantize, parts, calibration)
        transforms = {role: use for role, use in parts.items() if role.startswith("transform")}
        own = {"exporter": exporter, **transforms}
        return {self.name: making.add(self, "budget", BASE, settings, at, own, {Measure.name: measured})}

    def offer(self, step: Step, plan: Planned, config: ModelConfig) -> Offer:
        """What a step chooses from.

        Raises:
            ModelError: layers cannot be quantized as asked.
        """
        assert isinstance(step.settings, BudgetSettings)
        measured = plan.step(step.inputs[Measure.name])
        return Measure().offer(measured, plan, config, embedding=step.settings.embedding)

    def bytes(self, step: Step, config: ModelConfig) -> int:
        """The budget itself."""
        assert isinstance(step.settings, BudgetSettings)
        return budget_bytes(step.settings.size, config.parameters)

    def sketch(self, step: Step, plan: Planned, config: ModelConfig) -> dict[str, Scheme]:
        """A model in which every width occurs, for checks before the choice is made: all that may become of it."""
        return self.offer(step, plan, config).sketch()

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """What the size has to be between."""
        keys, config = step.settings, look.config
        assert isinstance(keys, BudgetSettings)
        if config is None:
            return
        try:
            offered = self.offer(step, look.plan, config)
        except RqatError:  # which the quantize step tells
            return
        asked = self.bytes(step, config)
        exporter = step.parts.get("exporter")
        per_weight = in_file(exporter.options if exporter else None, Scheme.bits_per_weight)
        beside, seen = 0, Context(model=described(config), device=look.device, tokenizer=look.tokenizer)
        try:
            beside = exporter.options.bytes_beside(seen) if exporter else 0
        except PluginError:
            raise
        except RqatError:  # of a tokenizer, which others tell
            pass
        span = bounds(offered, config.linears | config.ends, config.parameters, per_weight, beside)
        refused = offered.refusal(keys.size, asked, span, config.parameters, exporter.card.name if exporter else "")
        if refused:
            yield step.finding("error", "size", refused.message, refused.hint)
        else:
            text = f"{keys.size} of weights; {between(*span, config.parameters)}."
            yield step.finding("note", "size", text)

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        return Needs(2 * sizes.model, 1 << 20)

    def told_scheme(self, recipe: Any, told: str) -> str:
        """See `Stage`."""
        return told if recipe.budget is None else f"{told}, widths within {recipe.budget.size}"


def _default_grid(making: Making) -> list[Card]:
    """The grid of the scheme's default; none where that is misspelled, or nobody offers it, which others tell."""
    spelled = making.recipe.scheme
    try:
        scheme = Scheme.parse(spelled if isinstance(spelled, str) else spelled.get(DEFAULT, ""))
    except RqatError:
        return []
    return [card for card in making.known("grid") if scheme.grid in (card.name, card.full_name)]


def packs_embedding(exporter: Card | None) -> bool:
    """Whether a file packs an embedding; one of no format may."""
    return exporter is None or exporter.embedding
