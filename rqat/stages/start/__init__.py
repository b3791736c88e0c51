"""Start: a finished step of another run, taken over in place of quantizing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

from ...cards import Kind
from ...contracts import File
from ...errors import ModelError
from ...estimate import Needs, Sizes
from ...facts import model_facts
from ...keys import Keys, ModelKeys
from ...model.config import ModelConfig, read_config, read_header
from ...model.hub import QUANTIZED_FILE
from ...model.layers import ENDS
from ...model.stored_schemes import stored_schemes, stored_transforms
from ...problems import Place
from ...scheme import UNIFORM, Scheme
from ...stage import Finding, Look, Making, Planned, Section, Stage, Step, Use, bare_name
from ...storage import PARTIAL, is_name, links_out, read_json

SHAPING = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)
"""Keys of config.json that a model shares with whatever was made of it."""


class StartKeys(Keys):
    """A quantized model that is there already. In a recipe a plain text is short for `{path: ...}`.

    Attributes:
        path: folder of a finished quantize or train step of any run, or one that `rqat.save` wrote; or a quantized
            checkpoint, which holds no latent weights: in the format `rqat`, or gptq, awq (GEMM), compressed-tensors
            (pack-quantized) or MLX (affine) of any tool.
    """

    named_by: ClassVar[str] = "path"

    path: File


class Start(Stage):
    """Takes over what another run has made; its latent weights too, if it was trained."""

    order = 15
    sections = (
        Section(
            "start", StartKeys, "a finished step to begin with, in place of `quantize`; `model` is what it came from.",
            default=None, optional=True,
        ),
    )  # fmt: skip
    makes_model = True

    def add(self, making: Making) -> None:
        """See `Stage`."""
        keys: StartKeys | None = making.recipe.start
        if keys is None:
            return
        place = making.place.at("start")
        if making.recipe.quantize is not None:
            making.problem(f"{place}: there is `quantize`, too; a model starts from one of the two.")
        name = _made_as(keys)
        if not is_name(name):
            making.problem(
                f"{place}: '{keys.path.path / 'manifest.json'}' calls its model {name!a:.100}, which no rqat does."
            )
        variant = making.variant(name)
        parts = _parts(making, keys, place)
        making.made[variant] = making.add(self, "start", variant, keys, place, parts, {})
        making.last = variant

    def told_scheme(self, recipe: Any, told: str) -> str:
        """See `Stage`."""
        if recipe.start is None:
            return told
        try:
            counts = Counter(map(str, stored_schemes(recipe.start.path.path).values()))
        except ModelError:
            return told  # what is the matter with it `check` tells
        return _counted(counts)

    def schemes(self, step: Step, plan: Planned, config: ModelConfig) -> dict[str, Scheme]:
        """See `Stage`."""
        assert isinstance(step.settings, StartKeys)
        schemes = stored_schemes(step.settings.path.path)
        if not set(schemes) <= {*config.linears, *ENDS}:
            raise _of_another(step.settings, plan, "its layers differ")
        return schemes

    def brings_scheme(self, step: Step, plan: Planned) -> bool:
        """See `Stage`."""
        return True

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        return Needs(disk=sizes.checkpoint)

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, StartKeys)
        if keys.path.path.resolve().name.endswith(PARTIAL):
            yield step.finding("error", "", f"'{keys.path}' is not finished.", "Wait for its run, or start that again.")
            return
        for link in links_out(keys.path.path):
            yield step.finding("error", "", f"'{link}' is a link out of its folder.", "Put the file in its place.")
            return
        try:
            schemes = stored_schemes(keys.path.path)
            own = read_config(ModelKeys(path=str(keys.path.path)), offline=True).raw
            if (keys.path.path / QUANTIZED_FILE).is_file():
                read_header(keys.path.path / QUANTIZED_FILE)
            if look.config is not None:
                raw = look.config.raw
                other = [key for key in SHAPING if key in own and key in raw and own[key] != raw[key]]
                if other:
                    differ = ", ".join(f"{key} is {own[key]} and {raw[key]}" for key in other[:2])
                    raise _of_another(keys, look.plan, differ)
                self.schemes(step, look.plan, look.config)
        except ModelError as error:
            yield step.finding("error", "", error.message, error.hint)
            return
        asked, made = look.plan.scheme, Counter(map(str, schemes.values()))
        if "scheme" in look.plan.recipe.model_fields_set and not set(made) <= set(map(str, asked.different)):
            others = ", only in `compare`" if look.plan.recipe.compare else ""
            text = f"'{asked.brief}' has no part in this{others}: '{keys.path}' stays at {_counted(made)}."
            yield Finding("warning", f"{look.plan.place.at('scheme')}: {text}")
        if look.config is not None and look.config.folder is not None and _other_weights(keys, look.config.keys):
            text = f"'{keys.path}' was made from other weights than those of '{look.plan.model.path}'."
            yield step.finding("warning", "", text, "Name under `model` what that run started from.")


def _parts(making: Making, keys: StartKeys, place: Place) -> dict[str, Use | None]:
    """The transforms that a start went through, and its grids but the one that comes with rqat.

    All that follows is made with them, so their sources count.
    """
    try:
        schemes = stored_schemes(keys.path.path).values()
    except ModelError:
        return {}  # what is the matter with it `check` tells
    named: dict[str, tuple[Kind, str, dict[str, Any]]] = {
        f"transform{f'-{number}' if number > 1 else ''}": ("transform", name, options)
        for number, (name, options) in enumerate(stored_transforms(keys.path.path), 1)
    }
    named |= {f"grid-{grid}": ("grid", grid, {}) for grid in sorted({one.grid for one in schemes} - {UNIFORM})}
    parts: dict[str, Use | None] = {}
    for role, (kind, name, options) in named.items():
        if any(name in (card.name, card.full_name) for card in making.known(kind)):
            parts[role] = making.named(kind, name, place, options)
        else:
            text = f"'{keys.path}' was made with the {kind} '{name}', which is not here"
            making.problem(f"{place}: {text}; install its plugin, or name its file: `rqat --plugin FILE ...`.")
    return parts


def _of_another(keys: StartKeys, plan: Planned, differ: str) -> ModelError:
    return ModelError(
        f"'{keys.path}' was made from another model than '{plan.model.path}': {differ}.",
        hint="Name under `model` what that run started from.",
    )


def _counted(schemes: Counter[str]) -> str:
    """ "w2g128", or "w2g128 (118 layers), w4g128 (50)"."""
    if len(schemes) == 1:
        return next(iter(schemes))
    first, *more = (f"{scheme} ({count})" for scheme, count in schemes.most_common())
    return ", ".join([first.replace(")", " layers)"), *more])


def _other_weights(keys: StartKeys, model: ModelKeys) -> bool:
    """Whether the run that made a start says that its model had files of the same names and other contents."""
    facts = _manifest(keys).get("facts")
    theirs = facts.get("model") if isinstance(facts, dict) else None
    weights = theirs.get("weights") if isinstance(theirs, dict) else None
    if not isinstance(weights, dict):
        return False
    ours = model_facts(model)["weights"]
    return set(weights) == set(ours) and weights != ours


def _manifest(keys: StartKeys) -> dict[str, Any]:
    """Of the step that made it; empty where there is none."""
    found = read_json(keys.path.path / "manifest.json")
    return found if isinstance(found, dict) else {}


def _made_as(keys: StartKeys) -> str:
    """What the model is called: the variant in its manifest, else its folder's name."""
    found = _manifest(keys).get("variant")
    plain = re.sub(r"[^\w.-]", "-", bare_name(keys.path.path.resolve().name)).strip("-.")
    return str(found or plain[:100] or "start")
