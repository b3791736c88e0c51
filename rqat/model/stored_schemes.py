"""The scheme of every layer of a quantized checkpoint, read from a file's header alone. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelError, RqatError
from ..scheme import Scheme

ENTRY = "rqat"
"""The only key of a file's metadata. With more than one their order in the file would be random."""

LARGEST_HEADER = 100_000_000


def schemes_in(facts: Mapping[str, Any]) -> dict[str, Scheme]:
    """The scheme of every layer, by the facts of a file, in order."""
    if "schemes" in facts:
        read = {text: Scheme.parse(text) for text in facts["schemes"].values()}
        return {name: read[facts["schemes"][name]] for name in facts["layers"]}
    scheme = Scheme.parse(facts["scheme"])
    if scheme.grid != facts["grid"]:
        raise ValueError("its grid is not that of its scheme")
    return dict.fromkeys(facts["layers"], scheme)


def stored_schemes(path: Path) -> dict[str, Scheme]:
    """The scheme of every layer in `quantized.safetensors`.

    Raises:
        ModelError: there is no such file, or it was not written by rqat.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= LARGEST_HEADER else {}
        return schemes_in(json.loads(header["__metadata__"][ENTRY]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RqatError) as error:
        raise ModelError(
            f"'{path.parent}' is not a finished quantize or train step.",
            hint="Name the folder of one, such as runs/NAME/04-train-kd.",
        ) from error
