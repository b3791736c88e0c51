"""Start: a finished step of another run, taken over in place of quantizing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from ...contracts import File
from ...errors import ModelError
from ...estimate import Needs, Sizes
from ...keys import Keys, ModelKeys
from ...model.config import ModelConfig, read_config, read_header
from ...model.hub import QUANTIZED_FILE
from ...model.layers import ENDS
from ...model.stored_schemes import stored_schemes
from ...scheme import Scheme
from ...stage import Finding, Look, Making, Planned, Section, Stage, Step, bare_name
from ...storage import is_name, links_out, read_json


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
        making.made[variant] = making.add(self, "start", variant, keys, place, {}, {})
        making.last = variant

    def schemes(self, step: Step, plan: Planned, config: ModelConfig) -> dict[str, Scheme]:
        """See `Stage`."""
        assert isinstance(step.settings, StartKeys)
        return stored_schemes(step.settings.path.path)

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        return Needs(disk=sizes.checkpoint)

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, StartKeys)
        for link in links_out(keys.path.path):
            yield step.finding("error", "", f"'{link}' is a link out of its folder.", "Put the file in its place.")
            return
        try:
            layers = self.schemes(step, look.plan, look.config)  # type: ignore[arg-type]
            read_config(ModelKeys(path=str(keys.path.path)), offline=True)
            if (keys.path.path / QUANTIZED_FILE).is_file():
                read_header(keys.path.path / QUANTIZED_FILE)
        except ModelError as error:
            yield step.finding("error", "", error.message, error.hint)
            return
        if look.config is not None and not set(layers) <= {*look.config.linears, *ENDS}:
            text = f"'{keys.path}' was made from another model than '{look.plan.model.path}': its layers differ."
            yield step.finding("error", "", text, "Name under `model` what that run started from.")


def _made_as(keys: StartKeys) -> str:
    """What the model is called: the variant in its manifest, else its folder's name."""
    manifest = read_json(keys.path.path / "manifest.json")
    found = manifest.get("variant") if isinstance(manifest, dict) else None
    plain = re.sub(r"[^\w.-]", "-", bare_name(keys.path.path.resolve().name)).strip("-.")
    return str(found or plain[:100] or "start")
