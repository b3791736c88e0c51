"""What all suites share, and how they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

from ..registry import Card, Kind, Registry

HEAVY = (
    "accelerate",
    "bitsandbytes",
    "compressed_tensors",
    "datasets",
    "gptqmodel",
    "huggingface_hub",
    "jax",
    "lm_eval",
    "matplotlib",
    "numpy",
    "optimum",
    "pandas",
    "peft",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "sympy",
    "tensorflow",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "trl",
    "vllm",
)
"""Libraries that take long to import: a card must not need them."""

_IMPORT = """
import importlib, json, sys
module, sys.path[:], heavy = json.loads(sys.argv[1])
import rqat.registry
before = set(sys.modules)
importlib.import_module(module)
print("\\n" + json.dumps([name for name in heavy if name in sys.modules and name not in before]))
"""


def expect(condition: object, message: str) -> None:
    """Fails with `message` unless `condition` holds; unlike `assert`, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


class Suite:
    """What all suites share.

    Class attributes, for subclasses to set:
        name: the registered name.
        options: options other than the defaults.
        registry: where the name is looked up; None is everything that is installed.
    """

    kind: ClassVar[Kind]
    name: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    registry: ClassVar[Registry | None] = None

    @property
    def card(self) -> Card:
        """The card under test."""
        return self._registry.card(self.kind, self.name)

    def make(self) -> Any:
        """The part under test, built as the host builds it."""
        return self._registry.make(self.card, self._registry.options(self.card, self.options))

    def test_the_card_says_what_it_is(self) -> None:
        """A one-line summary for `rqat plugins`, and a class of the right kind behind `load`."""
        expect(self.card.summary and "\n" not in self.card.summary, "summary= is missing or more than one line")
        self._registry.load_class(self.card)

    def test_the_card_is_light(self) -> None:
        """It is read whenever `rqat` starts, so it imports none of the large libraries."""
        expect_light(self.card.module)

    @property
    def _registry(self) -> Registry:
        return self.registry or _installed()


def expect_light(module: str) -> None:
    """Fails where a plugin's module imports one of the libraries `HEAVY`."""
    heavy = heavy_imports(module)
    expect(
        not heavy,
        f"{module} imports {', '.join(heavy)} whenever rqat starts: import it inside the method that "
        'needs it, or in a submodule of its own behind load=".submodule:Class"',
    )


@lru_cache
def heavy_imports(module: str) -> tuple[str, ...]:
    """Which of the libraries `HEAVY` are imported with a plugin's module, found out in a process of its own."""
    given = json.dumps([module, sys.path, HEAVY])
    done = subprocess.run([sys.executable, "-c", _IMPORT, given], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"{module} does not import by itself: {done.stderr.strip().splitlines()[-1:]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


@lru_cache(maxsize=1)
def _installed() -> Registry:
    return Registry.discover()
