"""A finished step of a run as the start of another: its model is trained further, evaluated, exported.

A recipe names the step's folder as its model (`model: runs/quickstart/04-train-kd`) and quantizes nothing itself
(`quantize: null`). The model before quantization, which objectives may want as a teacher, is the one that the step's
manifest names.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .contents import file_fact
from .errors import ModelError, RqatError
from .keys import ModelKeys
from .model.hub import QUANTIZED_FILE
from .scheme import Scheme, Schemes
from .storage import fingerprint_of, read_json


@dataclass(frozen=True)
class Start:
    """A quantized model that lies in a folder.

    Attributes:
        folder: where, as an absolute path.
        variant: what the model is called there: a quantizer's or an objective's name.
        model: the model before quantization; None where the folder does not say.
        facts: what that model held then; see `rqat.contents.model_facts`.
        layers: the scheme of every quantized layer, by full name.
    """

    folder: Path
    variant: str
    model: ModelKeys | None
    layers: Mapping[str, Scheme]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def schemes(self) -> Schemes:
        """The layers' schemes as a recipe would say them: the one most layers have, and the others by name."""
        counted = list(self.layers.values())
        usual = max(dict.fromkeys(counted), key=counted.count)
        return Schemes(default=usual, patterns=tuple((n, s) for n, s in self.layers.items() if s != usual))

    def fingerprint(self) -> str:
        """A digest of what the folder holds of the model; its name and its place do not count."""
        files = [path for path in sorted(self.folder.glob("*")) if path.suffix == ".safetensors"]
        return fingerprint_of({path.name: file_fact(path) for path in [*files, self.folder / "config.json"]})


def start_of(keys: ModelKeys) -> Start | None:
    """The finished step that a recipe's model is; None for any other model.

    Raises:
        ModelError: it is damaged, or was written by another version.
    """
    folder = Path(keys.path).expanduser().absolute()
    if not (folder / QUANTIZED_FILE).is_file():
        return None
    manifest = read_json(folder / "manifest.json") or {}
    before = manifest.get("model")
    return Start(
        folder,
        str(manifest.get("variant") or folder.name),
        ModelKeys.model_validate(before) if before else None,
        _layers(folder / QUANTIZED_FILE),
        manifest.get("facts", {}).get("model", {}),
    )


def kept_name(keys: ModelKeys) -> dict[str, Any]:
    """How a manifest names a model, so that `start_of` finds it from any folder."""
    path = Path(keys.path).expanduser()
    absolute = {"path": str(path.absolute())} if path.is_dir() else {}
    return keys.model_dump(mode="json") | absolute


def _layers(path: Path) -> dict[str, Scheme]:
    """The scheme of every layer, from the header of the file alone; see `rqat.model.checkpoint.save_layers`."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        written: dict[str, Any] = json.loads(header["__metadata__"]["rqat"])
        spelled = written.get("schemes") or dict.fromkeys(written["layers"], written.get("scheme"))
        read = {text: Scheme.parse(text) for text in set(spelled.values())}
        return {name: read[spelled[name]] for name in written["layers"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RqatError) as error:
        raise ModelError(
            f"'{path}' cannot be read: it is damaged, or was written by another version.",
            hint="Run the step that wrote it again.",
        ) from error
