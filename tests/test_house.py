"""How the house is built: who may import whom, what lies where, and that the light half stays light."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rqat import hookspecs
from rqat.cards import keywords
from rqat.registry import BUILTIN

ROOT = Path(__file__).parents[1]
RQAT, PLUGINS, KERNELS = ROOT / "rqat", ROOT / "plugins", ROOT / "kernels"

FLOORS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "scheme": ("errors",),
    "contracts": ("scheme", "errors"),
    "hookspecs": ("contracts", "scheme", "errors"),
    "keys": ("contracts",),
    "storage": ("errors",),
    "problems": ("errors",),
    "yaml_lines": ("problems", "errors"),
    "quiet": (),
    "batches": ("errors",),
    "optimizers": (),
    "processes": ("errors",),
    "cards": ("hookspecs", "contracts", "keys", "errors"),
    "discovery": ("cards", "hookspecs", "errors"),
    "registry": ("discovery", "cards", "hookspecs", "contracts", "problems", "errors"),
    "launcher": ("quiet", "job", "plan", "processes", "storage", "errors"),
    "worker": ("quiet", "pipeline", "launcher", "job", "plan", "recipe", "registry", "processes", "storage", "errors"),
    "grids": ("registry", "contracts", "scheme", "errors"),
    "recipe": ("registry", "keys", "problems", "yaml_lines", "errors"),
    "model": ("grids", "quiet", "registry", "contracts", "keys", "scheme", "errors", "storage"),
    "evals": ("quiet", "generation", "contracts", "keys", "scheme", "errors", "storage"),
    "generation": ("packed", "model", "contracts", "keys", "scheme", "errors"),
    "packed": ("grids", "model", "contracts", "keys", "scheme", "errors"),
    "train": (
        "grids",
        "optimizers",
        "generation",
        "model",
        "contracts",
        "keys",
        "scheme",
        "errors",
        "storage",
        "processes",
    ),
    "facts": ("registry", "model", "keys", "storage", "contracts"),
    "plan": (
        "grids",
        "facts",
        "recipe",
        "registry",
        "problems",
        "model",
        "keys",
        "storage",
        "contracts",
        "scheme",
        "errors",
    ),
    "estimate": ("batches", "plan", "model", "keys", "errors"),
    "describe": (),
    "preflight": (
        "grids",
        "batches",
        "optimizers",
        "estimate",
        "evals",
        "plan",
        "facts",
        "registry",
        "problems",
        "model",
        "keys",
        "contracts",
        "errors",
    ),
    "cut_out": (),
    "scaffold": ("registry", "cards", "cut_out", "storage", "errors"),
    "testing": ("grids", "registry", "train", "model", "contracts", "scheme", "errors"),
    "job": ("plan", "registry", "processes"),
    "stages": (
        "quiet",
        "batches",
        "job",
        "plan",
        "train",
        "generation",
        "packed",
        "model",
        "evals",
        "storage",
        "processes",
        "keys",
        "contracts",
        "registry",
        "scheme",
        "errors",
    ),
    "report": ("job", "plan", "evals", "storage", "keys", "registry", "recipe", "scheme", "errors"),
    "pipeline": ("stages", "report", "launcher", "job", "plan", "storage", "errors"),
}
"""For every part of rqat, the parts it may import. Those of `TOP` may import all; the version may be read by all."""

TOP = ("cli", "api", "__main__", "__init__")
"""What a user enters by; these may import all others."""

PLUGINS_MAY_IMPORT = {"rqat", "rqat_kernels", "torch", "transformers", "trl", "datasets", "accelerate", "pydantic"}
PLUGINS_MAY_IMPORT |= {"numpy", "tokenizers", "safetensors", "math_verify", "lm_eval", "compressed_tensors", "typer"}

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def python_files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.py")) if "__pycache__" not in path.parts]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of the modules a file imports, with the line; those for type checkers only are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).parent.parts
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(filter(None, (base, node.module)))
            if node.level and not node.module:
                yield from ((f"{stem}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield stem, node.lineno


def part(path: Path) -> str:
    """Which part of rqat a file belongs to."""
    return path.relative_to(RQAT).parts[0].removesuffix(".py")


# -------------------------------------------------------------------------------------------------------- floors


@pytest.mark.parametrize("path", python_files(RQAT), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path):
    own = part(path)
    for name, line in imports(path):
        top, _, rest = name.partition(".")
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        assert top not in BUILTIN, f"{where}: the host knows plugins by name only"
        if top != "rqat" or own in TOP:
            continue
        room = rest.partition(".")[0]
        assert room in (own, "", "__version__", *FLOORS[own]), where


def test_the_floors_have_no_circle():
    done: set[str] = set()
    while len(done) < len(FLOORS):
        ready = {name for name, below in FLOORS.items() if name not in done and set(below) <= done}
        assert ready, f"a circle among {sorted(set(FLOORS) - done)}"
        done |= ready


def test_every_part_has_a_floor():
    parts = {part(path) for path in python_files(RQAT)} - set(TOP)
    assert parts <= set(FLOORS), f"no floor: {sorted(parts - set(FLOORS))}"


@pytest.mark.parametrize("path", python_files(KERNELS / "rqat_kernels"), ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_know_nothing_of_rqat(path: Path):
    for name, line in imports(path):
        assert name.partition(".")[0] not in ("rqat", *BUILTIN), f"line {line} imports {name}"


@pytest.mark.parametrize("path", python_files(PLUGINS), ids=lambda path: str(path.relative_to(ROOT)))
def test_plugins_import_the_face_and_what_they_wrap(path: Path):
    own = path.relative_to(PLUGINS).parts[0].removesuffix(".py")
    tree_level = len(path.relative_to(PLUGINS).parts) - 1
    for name, line in imports(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        if name.startswith("plugins."):
            assert name.split(".")[1] == own, f"{where}: plugins never import each other"
            assert tree_level, f"{where}: a single file has nothing to import relatively"
            continue
        top = name.partition(".")[0]
        assert top not in BUILTIN, f"{where}: import relatively, so that a copy runs its own code"
        assert top in PLUGINS_MAY_IMPORT or top in sys.stdlib_module_names, where
        assert top != "rqat" or name in ("rqat", "rqat.evals.grade"), f"{where}: plugins see the face `rqat` only"


def test_a_plugins_card_is_light():
    """Its module imports neither torch nor anything that does."""
    for name in BUILTIN:
        file = PLUGINS / f"{name}.py"
        tree = ast.parse((file if file.exists() else PLUGINS / name / "__init__.py").read_text(encoding="utf-8"))
        tops = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = {alias.name.partition(".")[0] for n in tops if isinstance(n, ast.Import) for alias in n.names}
        names |= {
            n.module.partition(".")[0] for n in tops if isinstance(n, ast.ImportFrom) and n.module and not n.level
        }
        assert names <= {"rqat", "pydantic", *sys.stdlib_module_names}, f"{name} imports {sorted(names)}"


def test_the_light_half_does_not_import_torch():
    light = "errors scheme contracts hookspecs keys problems yaml_lines storage registry recipe facts plan estimate"
    light += " processes cards discovery describe launcher"
    modules = ", ".join(
        f"rqat.{name}" for name in [*light.split(), "preflight", "scaffold", "testing", "job", "cli.app"]
    )
    code = (
        f"import sys, {modules}; from rqat.registry import Registry; Registry.discover()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'trl', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("folder", ["plugins", "kernels", "recipes"])
def test_these_folders_are_no_packages(folder: str):
    """`kernels/__init__.py` would shadow the package of that name on PyPI; the others are laid out like it."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_files_are_named_for_what_they_hold():
    bad = [path for path in python_files(RQAT, PLUGINS, KERNELS) if path.stem in FORBIDDEN_NAMES]
    assert not bad


def test_files_are_short():
    """One concept each: at most 500 lines."""
    long = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(RQAT, PLUGINS, KERNELS)
    }
    assert not {path: lines for path, lines in long.items() if lines > 500}


def test_folders_are_at_most_three_deep():
    for path in python_files(RQAT, PLUGINS, KERNELS):
        assert len(path.relative_to(ROOT).parts) <= 4, path


def test_every_module_says_what_it_is_for():
    for path in python_files(RQAT, PLUGINS, KERNELS):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no docstring"


def test_nothing_is_left_to_do():
    for path in python_files(RQAT, PLUGINS, KERNELS):
        text = path.read_text(encoding="utf-8")
        assert not any(f"{word}" in text for word in ("TODO", "FIXME", "XXX")), path


def test_built_in_plugins_are_listed_and_all_there():
    there = {p.stem for p in PLUGINS.glob("rqat_*.py")} | {p.parent.name for p in PLUGINS.glob("rqat_*/__init__.py")}
    assert there == set(BUILTIN)


def test_every_hook_is_documented():
    page = ROOT / "docs" / "reference" / "hooks.md"
    if not page.exists():
        pytest.skip("the documentation is not in this checkout")
    text = page.read_text(encoding="utf-8")
    for name, hook in inspect.getmembers(hookspecs, inspect.isfunction):
        if name.startswith("register_"):
            parameters = ", ".join(inspect.signature(hook).parameters)
            assert f"{name}({parameters}" in text, f"docs/reference/hooks.md does not show {name}({parameters})"
            if name != "register_commands":
                assert not [word for word in keywords(name) if not re.search(rf"\b{word}\b", text)], name
