"""Export: a quantized model as files that servers load."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

from ...contracts.options import in_file
from ...estimate import Needs, Sizes, bits_of
from ...keys import PluginKeys
from ...model.config import ModelConfig
from ...model.layers import EMBEDDING
from ...model.memory import SMALL
from ...model.stored_schemes import NATIVE
from ...scheme import Scheme
from ...servers import FUSING, Outlook, called, seen, torn_apart
from ...stage import Finding, Look, Making, Planned, Section, Stage, Step


class ExportKeys(PluginKeys):
    """A checkpoint format by name; what remains are its options.

    Attributes:
        format: name of the format.
    """

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
    card = "model/README.md"
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

        schemes = look.plan.known_schemes(step, look.config)
        if look.config is None or schemes is None:
            return
        for name in _unpacked(step, schemes):
            text = f"'{step.parts['exporter'].card.name}' writes {name}, quantized to {schemes[name]}, in 16 bits."
            yield step.finding("note", "", text, "`export: gguf`, `mlx` and `rqat` pack it.")
        yield from _servers(step, look.config, schemes)

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        host = sizes.device == "cpu"
        blocks = max(1, sizes.config.blocks)
        ends = [math.prod(shape) for shape in sizes.config.ends.values()]
        if 2 * sizes.model <= SMALL and step.parts["exporter"].card.name != NATIVE:
            # The model as it was and as it is read again; on the CPU one's memory is not free at once for the other.
            memory = (2 if host else 1) * sizes.model + sizes.codes
        else:  # a tensor beside what was made of it, or a block as it was and as it is read again
            memory = max(2 * max(ends, default=0) * sizes.width, 4 * sizes.quantized // blocks * sizes.width)
        return Needs(memory, _bytes(step, plan, sizes))


def _bytes(step: Step, plan: Planned, sizes: Sizes) -> float:
    """Of the file that a step writes; where a budget bounds it, that."""
    config = sizes.config
    budget = plan.budget(step, config)
    if budget is not None:
        return budget
    schemes = plan.known_schemes(step, config) or {}
    held = {name: schemes[name] for name in schemes if name not in _unpacked(step, schemes)}
    per_weight = in_file(step.parts["exporter"].options, sizes.per_weight)
    return (bits_of(held, config, per_weight)[1] if held else 16) * config.parameters / 8


def _servers(step: Step, config: ModelConfig, schemes: Mapping[str, Scheme]) -> Iterator[Finding]:
    """What servers were seen to do with such a file; a warning where none loads it."""
    packed = {name: scheme for name, scheme in schemes.items() if name not in _unpacked(step, schemes)}
    format_name, torn = step.parts["exporter"].card.name, torn_apart(config.layout, config.blocks, packed)
    found = seen(format_name, packed, torn, called(config.raw))
    if not found:  # a format that nobody tried: another plugin's, or rqat's own
        return
    if config.layout.experts and not any(each.loads for each in found):
        spelled = ", ".join(dict.fromkeys(map(str, packed.values())))
        text = f"'{format_name}' with packed experts at {spelled} was seen to load in no server."
        fix = "`export: rqat` packs them, `export: bf16` loads everywhere; vLLM was seen to read them at w4g128-sym."
        yield step.finding("error", "", text, fix)
        return
    fusing = [each.server for each in found if each.server in FUSING]
    if torn and fusing:
        parts = "; ".join(", ".join(name.rpartition(".")[2] for name in names) for names in torn)
        text = f"{fusing[0]} computes as one layer, and refuses where their schemes differ: {parts}."
        yield step.finding("warning", "", text, "Give them one scheme, or leave all of them out.")
    what = f"'{format_name}' with {', '.join(map(str, dict.fromkeys(packed.values())))}"
    loading = [f"{each.server} {each.version}" for each in found if each.loads]
    refusing = "; ".join(_refusal(each) for each in found if each.loads is False)
    if loading:
        also = f" Refused by {refusing}." if refusing else ""
        yield step.finding("note", "", f"{what} was seen to load in {', '.join(loading)}.{also}")
        return
    why = f" Refused by {refusing}." if refusing else " It was not tried."
    fix = "docs/howto/serve.md says what loads where; `export: bf16` loads everywhere."
    yield step.finding("warning", "", f"{what} was seen to load in no server.{why}", fix)


def _refusal(found: Outlook) -> str:
    return f"{found.server} {found.version}{f': {found.words}' if found.words else ''}"


def _unpacked(step: Step, schemes: Mapping[str, Scheme]) -> list[str]:
    """The quantized layers that a step's format holds in 16 bits."""
    return [EMBEDDING] if EMBEDDING in schemes and not step.parts["exporter"].card.embedding else []
