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
from rqat.keys import Neutral
from rqat.problems import models_in
from rqat.registry import BUILTIN
from rqat.stages import sections, stages

ROOT = Path(__file__).parents[1]
RQAT, PLUGINS, KERNELS = ROOT / "rqat", ROOT / "plugins", ROOT / "kernels"

FLOORS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "figures": (),
    "text_files": ("errors",),
    "scheme": ("errors",),
    "contracts": ("scheme", "errors"),
    "hookspecs": ("contracts",),
    "storage": ("errors",),
    "problems": ("errors",),
    "yaml_lines": ("problems", "errors"),
    "quiet": (),
    "batches": ("errors",),
    "optimizers": (),
    "processes": ("errors",),
    "keys": ("contracts",),
    "cards": ("hookspecs", "contracts", "errors"),
    "shapes": ("contracts", "keys", "scheme", "errors", "storage", "figures"),
    "estimate": ("shapes", "keys", "scheme", "errors"),
    "servers": ("shapes", "scheme"),
    "budget": ("shapes", "scheme", "errors"),
    "stage": ("estimate", "cards", "shapes", "keys", "contracts", "problems", "scheme"),
    "overlap": ("stage", "contracts", "errors"),
    "stages": (
        *("stage", "estimate", "cards", "shapes", "keys", "contracts", "problems", "scheme", "figures", "errors"),
        *("batches", "optimizers", "storage", "servers", "budget", "facts"),
    ),
    "facts": ("stage", "cards", "shapes", "keys", "contracts", "storage"),
    "discovery": ("cards", "hookspecs", "errors"),
    "registry": ("figures", "discovery", "cards", "stages", "hookspecs", "contracts", "problems", "errors"),
    "grids": ("registry", "cards", "contracts", "scheme", "errors"),
    "model": ("figures", "grids", "shapes", "quiet", "registry", "contracts", "keys", "scheme", "errors", "storage"),
    "packed": ("figures", "grids", "model", "shapes", "contracts", "keys", "scheme", "errors"),
    "generation": ("text_files", "packed", "model", "shapes", "contracts", "keys", "scheme", "errors"),
    "evals": ("quiet", "generation", "contracts", "scheme", "errors", "storage", "processes"),
    "train": (
        *("figures", "cards"),
        *("grids", "optimizers", "generation", "model", "shapes", "contracts", "keys", "scheme", "errors", "storage"),
        "processes",
    ),
    "shorthand": ("problems",),
    "recipe": ("shorthand", "registry", "stages", "keys", "problems", "yaml_lines", "errors"),
    "recipe_schema": ("recipe", "shorthand", "describe", "registry", "cards", "problems"),
    "plan": (
        *("grids", "facts", "recipe", "registry", "stages", "stage", "cards", "problems", "shapes", "keys", "storage"),
        *("contracts", "scheme", "errors"),
    ),
    "lighter": ("grids", "estimate", "stage", "stages", "shapes", "keys", "figures", "errors"),
    "read_once": ("registry", "stage", "cards", "contracts"),
    "capacity": (
        *("lighter", "run_folder", "grids", "plan", "stages", "stage", "estimate", "shapes", "contracts", "figures"),
        "storage",
    ),
    "preflight": (
        *("capacity", "lighter", "overlap", "read_once"),
        "run_folder",
        *("grids", "plan", "facts", "stages", "stage", "estimate", "cards", "registry", "model", "shapes", "keys"),
        *("figures", "contracts", "scheme", "errors"),
    ),
    "filled": ("plan", "stage", "problems", "contracts"),
    "describe": (),
    "cut_out": (),
    "scaffold": ("registry", "cards", "cut_out", "storage", "errors"),
    "testing": ("generation", "grids", "keys", "shapes", "registry", "train", "model", "contracts", "scheme", "errors"),
    "nodes": ("errors", "storage"),
    "job": ("plan", "stages", "stage", "registry", "model", "processes", "nodes", "storage", "errors"),
    "works": (
        "budget",
        "overlap",
        "figures",
        "grids",
        "lighter",
        "optimizers",
        *("job", "plan", "recipe", "stage", "stages", "train", "packed", "model", "shapes", "evals", "storage"),
        *(
            "generation",
            "batches",
            "quiet",
            "servers",
            "processes",
            "cards",
            "keys",
            "contracts",
            "problems",
            "registry",
            "scheme",
            "errors",
        ),
    ),
    "report": (
        *("run_folder", "run_lock", "filled", "intact"),
        *("job", "plan", "stages", "stage", "evals", "storage", "figures", "errors"),
    ),
    "launcher": ("shapes", "quiet", "job", "stage", "processes", "nodes", "storage", "errors"),
    "intact": ("storage", "errors"),
    "run_lock": ("storage", "errors"),
    "run_folder": ("intact", "facts", "stage", "storage", "contracts", "keys", "problems", "errors"),
    "pipeline": (
        *("lighter", "estimate", "shapes"),
        *("intact", "run_lock", "run_folder"),
        *("launcher", "works", "report", "job", "stages", "stage", "facts", "storage", "figures", "errors"),
    ),
    "sweep": (
        *("pipeline", "run_folder", "run_lock", "report", "job", "plan", "recipe", "registry", "stage", "keys"),
        *("problems", "yaml_lines", "storage", "figures", "errors"),
    ),
    "worker": (
        *(
            "quiet",
            "pipeline",
            "launcher",
            "job",
            "plan",
            "shapes",
            "processes",
            "recipe",
            "registry",
            "storage",
            "errors",
        ),
    ),
}
"""For every part of rqat, the parts it may import. `cli` may import all of them; the version may be read by all.

`stages` are the light rooms, `works` what does a stage's work: every other file in its folder. `shapes` are the files
that tell of a model without loading it.
"""

SHAPES = {
    "config",
    "config_groups",
    "extras",
    "families",
    "foreign",
    "foreign_shapes",
    "hub",
    "layers",
    "memory",
    "packed_shapes",
    "stored_schemes",
    "vocabulary",
}
"""Of the files in rqat/model."""

TOP = ("cli", "api", "__main__", "__init__")
"""What a user enters by; these may import all others."""

PLUGINS_MAY_IMPORT = {"rqat", "rqat_kernels", "torch", "transformers", "trl", "datasets", "accelerate", "pydantic"}
PLUGINS_MAY_IMPORT |= {
    "numpy",
    "tokenizers",
    "safetensors",
    "math_verify",
    "lm_eval",
    "compressed_tensors",
    "typer",
    "gguf",
    "gptqmodel",
}

FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def python_files(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.py")) if "__pycache__" not in path.parts]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of the modules a file imports, with the line; those for type checkers only count as well."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                inner = f"{stem}.{alias.name}"
                yield (inner if is_module(inner) else stem), node.lineno


def is_module(name: str) -> bool:
    """Whether a name inside rqat is a file or a package of its own."""
    path = ROOT.joinpath(*name.split("."))
    return name.startswith("rqat.") and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


def part(path: Path) -> str:
    """Which part of rqat a file belongs to."""
    inside = path.relative_to(RQAT).parts
    if inside[0] == "stages" and inside[-1] != "__init__.py":
        return "works"
    if inside[0] == "model" and inside[-1].removesuffix(".py") in SHAPES:
        return "shapes"
    return inside[0].removesuffix(".py")


def part_of(module: str) -> str:
    """Which part of rqat a module belongs to; "" for rqat itself."""
    inside = module.split(".")[1:]
    if inside[:1] == ["stages"] and len(inside) > 2:
        return "works"
    if inside[:1] == ["model"] and inside[-1] in SHAPES:
        return "shapes"
    return inside[0] if inside else ""


# -------------------------------------------------------------------------------------------------------- floors


@pytest.mark.parametrize("path", python_files(RQAT), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path):
    own = part(path)
    for name, line in imports(path):
        top = name.partition(".")[0]
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        assert top not in BUILTIN, f"{where}: the host knows plugins by name only"
        if top != "rqat" or own in TOP:
            continue
        assert part_of(name) in (own, "", "__version__", *FLOORS[own]), where


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
        faces = ("rqat", "rqat.evals.grade", *(["rqat.testing"] if path.stem.endswith("conformance") else []))
        assert top != "rqat" or name in faces, f"{where}: plugins see the face `rqat` only, and their suites its suites"


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
        # Of the kernels only what is light: that nothing heavy comes with it is tested below.
        assert names <= {"rqat", "rqat_kernels", "pydantic", *sys.stdlib_module_names}, (
            f"{name} imports {sorted(names)}"
        )


def test_the_light_half_does_not_import_torch():
    light = "errors scheme contracts hookspecs keys problems yaml_lines storage stage stages registry recipe facts"
    light += " plan estimate figures text_files"
    light += " processes cards discovery describe launcher servers"
    modules = ", ".join(
        f"rqat.{name}" for name in [*light.split(), "preflight", "scaffold", "testing", "job", "cli.app"]
    )
    code = (
        f"import sys, {modules}; from rqat.registry import Registry; Registry.discover()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'trl', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------------------------------------- stages


OUTSIDE = [path for path in python_files(RQAT) if path.relative_to(RQAT).parts[0] != "stages"]
"""Files that are to know no stage by its name."""


def constants(node: ast.AST) -> set[object]:
    """The constant that a node is, or those in the list, tuple or set that it is."""
    listed = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return {inner.value for inner in listed if isinstance(inner, ast.Constant)}


def is_about_stages(node: ast.AST, names: set[str]) -> str:
    """What a node compares with, or keys by, a stage's name; "" where it does not."""
    if isinstance(node, ast.Compare) and any(names & constants(side) for side in (node.left, *node.comparators)):
        return "compares with a stage's name"
    if isinstance(node, ast.match_case) and names & constants(getattr(node.pattern, "value", node.pattern)):
        return "compares with a stage's name"
    if isinstance(node, ast.Dict) and len(names & {k.value for k in node.keys if isinstance(k, ast.Constant)}) > 1:
        return "a table keyed by stages' names"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("of", "find"):
        return "asks for a stage by its name" if any(names & constants(argument) for argument in node.args) else ""
    return ""


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_stages_are_known_in_their_rooms_alone(path: Path):
    names, where = set(stages()), path.relative_to(ROOT)
    for name, line in imports(path):
        inside = name.split(".")[2:] if name.startswith("rqat.stages.") else []
        # A command, or a function, that is named for a stage may call what does its work; it needs none of its keys.
        allowed = part(path) in TOP and len(inside) == 2
        assert not inside or allowed, f"{where}:{line} imports {name}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = is_about_stages(node, names)
        assert not found, f"{where}:{getattr(node, 'lineno', '?')}: {found}"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("step.stage == 'train'", True),
        ("step.stage in ('train', 'export')", True),
        ("{'train': 1, 'export': 2}", True),
        ("run.of('evaluate')", True),
        ("step.stage == name", False),
        ("{'train': 1, 'steps': 2}", False),
    ],
)
def test_what_counts_as_knowing_a_stage(code: str, found: bool):
    assert any(is_about_stages(node, set(stages())) for node in ast.walk(ast.parse(code))) == found


def test_every_key_counts_or_says_why_not():
    for section in sections():
        for model in models_in(section.model):
            for name, info in model.model_fields.items():
                for mark in info.metadata:
                    assert not isinstance(mark, Neutral) or mark.why, f"{model.__name__}.{name}"


# --------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("folder", ["plugins", "kernels", "recipes"])
def test_these_folders_are_no_packages(folder: str):
    """`kernels/__init__.py` would shadow the package of that name on PyPI; the others are laid out like it."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_files_are_named_for_what_they_hold():
    bad = [path for path in python_files(RQAT, PLUGINS, KERNELS) if path.stem in FORBIDDEN_NAMES]
    assert not bad


def test_files_are_short():
    """One concept each: at most 400 lines."""
    long = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(RQAT, PLUGINS, KERNELS)
    }
    assert not {path: lines for path, lines in long.items() if lines > 400}


def test_operations_are_entered_by_their_front_door():
    """Files inside an operation (its kernels, its reference) are its own: they may be cut another way at any time."""
    for path in python_files(RQAT, PLUGINS):
        for name, line in imports(path):
            inside = [part for part in name.split(".")[2:] if name.startswith("rqat_kernels.")]
            assert not inside, f"{path.relative_to(ROOT)}:{line} imports {name}"


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
