"""`rqat plugins new`: what is written, and what is refused."""

from __future__ import annotations

import ast
import errno
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from rqat import PluginError, RunError, UnknownName
from rqat.cut_out import without_future_annotations
from rqat.discovery import PATHS
from rqat.errors import DiskError
from rqat.registry import BUILTIN, Registry
from rqat.scaffold import new_plugin, rename
from rqat.storage import write_text


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def test_only_registered_names_change():
    code = '# "a" stays\nx = "a"\n\ndef hook(register):\n    register("a", load=":A", summary="a é")  # "a"\n'
    code += '    register(\n        "b",\n        load=":B",\n    )\n    other("a")\n'
    assert rename(code, {"a": "new", "b": "newer"}) == code.replace('register("a"', 'register("new"').replace(
        '"b"', '"newer"'
    )


@pytest.mark.parametrize(("like", "kind"), [("gptq", "quantizer"), ("rqat_gptq", None), ("rqat_gptq:gptq", None)])
def test_a_package_is_copied_whole(registry: Registry, tmp_path: Path, like: str, kind: str | None):
    made = new_plugin(registry, "rqat-acme-quant", like, kind=kind, parent=tmp_path)
    original = Path(__file__).parents[2] / "plugins" / "rqat_gptq"
    copied = made.folder / made.module
    names = sorted(path.name for path in original.glob("*.py"))
    assert sorted(path.name for path in copied.iterdir()) == names
    for name in names:
        if name != "__init__.py":
            assert (copied / name).read_bytes() == (original / name).read_bytes()
    ours, theirs = (copied / "__init__.py").read_text(), (original / "__init__.py").read_text()
    changed = {line for line in ours.splitlines() if line not in theirs.splitlines()}
    assert changed == {
        '"""Quantizer `acme-quant`: round column by column, later columns make up for the error."""',
        '    """Options of `acme-quant`.',
        '        "acme-quant",',
        '    """The card of `acme-quant`."""',
        '    def _groups_fit_the_order(self) -> "Options":',
    }
    assert "`gptq`" not in ours
    assert made.commands == (f"cd {made.folder}", "pip install -e .", "pytest")


def test_what_cannot_be_written_whole_leaves_nothing_in_the_way(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path, text: str) -> None:
        if path.name == "README.md":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_text(path, text)

    monkeypatch.setattr("rqat.scaffold.write_text", full)
    with pytest.raises(DiskError, match="rqat-acme-quant"):
        new_plugin(registry, "rqat-acme-quant", "rtn", parent=tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert new_plugin(registry, "rqat-acme-quant", "rtn", parent=tmp_path).folder.is_dir()


def test_the_project_file_has_the_entry_point(registry: Registry, tmp_path: Path):
    made = new_plugin(registry, "rqat-acme-quant", "rtn", parent=tmp_path)
    project = tomllib.loads((made.folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == "rqat-acme-quant"
    assert project["project"]["entry-points"]["rqat"] == {"acme-quant": "rqat_acme_quant"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["include"] == ["/rqat_acme_quant.py"]
    assert (made.folder / "rqat_acme_quant.py").is_file()


@pytest.mark.parametrize("module", BUILTIN)
def test_every_built_in_can_be_copied(registry: Registry, tmp_path: Path, module: str):
    made = new_plugin(registry, "rqat-acme-new", module, parent=tmp_path)
    for path in made.folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
    tests = (made.folder / "tests" / "test_conformance.py").read_text()
    for name in made.names.values():
        assert f'name = "{name}"' in tests
        assert name.startswith("acme-new")


def test_several_names_keep_what_tells_them_apart(registry: Registry, tmp_path: Path):
    made = new_plugin(registry, "rqat-acme", "rqat_math", parent=tmp_path)
    assert made.names == {name: f"acme-{name}" for name in ("aime120", "gpqa-diamond", "gsm8k", "math500")}


@pytest.mark.parametrize(
    "name", ["rqat-gptq", "rqat-kernels", "rqat", "acme", "rqat_acme", "rqat-Acme", "rqat-../x", "rqat-1"]
)
def test_names_that_are_refused(registry: Registry, tmp_path: Path, name: str):
    with pytest.raises(PluginError, match="rqat-acme-quant"):
        new_plugin(registry, name, parent=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(registry: Registry, tmp_path: Path):
    new_plugin(registry, "rqat-acme", parent=tmp_path)
    with pytest.raises(RunError, match="exists already"):
        new_plugin(registry, "rqat-acme", parent=tmp_path)


def test_what_to_copy_must_be_known_and_clear(registry: Registry, tmp_path: Path):
    with pytest.raises(UnknownName, match="Did you mean 'gptq'"):
        new_plugin(registry, "rqat-acme", "gptqq", parent=tmp_path)
    with pytest.raises(PluginError, match="the source of rqat_data and the task of rqat_math") as caught:
        new_plugin(registry, "rqat-acme", "gsm8k", parent=tmp_path)
    assert caught.value.hint == "Say which: --kind source or --kind task."
    with pytest.raises(PluginError, match="the quantizer of rqat_gptq and the exporter of rqat_gptq_format"):
        new_plugin(registry, "rqat-acme", "gptq", parent=tmp_path)
    with pytest.raises(UnknownName, match="'gptq' is not a source or plugin"):
        new_plugin(registry, "rqat-acme", "gptq", kind="source", parent=tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_part_is_copied_with_its_own_files(registry: Registry, tmp_path: Path):
    made = new_plugin(registry, "rqat-acme-rows", "jsonl", parent=tmp_path)
    copied = made.folder / made.module
    assert made.names == {"jsonl": "acme-rows"}
    assert sorted(path.name for path in copied.iterdir()) == ["__init__.py", "conversations.py", "files.py", "rows.py"]
    card = (copied / "__init__.py").read_text()
    assert card.count("    register(") == 1
    for gone in ("HubOptions", "Gsm8kOptions", "MixOptions", "rqat.Part", ".hub:Hub"):
        assert gone not in card
    assert "class TextOptions" in card  # files.py has the source `text` as well, and needs its options
    made = new_plugin(registry, "rqat-acme-sums", "arith", kind="task", parent=tmp_path)
    card = (made.folder / made.module / "__init__.py").read_text()
    assert "register_sources" not in card
    assert "SourceOptions" not in card
    assert not (made.folder / made.module / "pretrain.py").exists()
    made = new_plugin(registry, "rqat-acme-asked", "general", parent=tmp_path)
    assert sorted(path.name for path in (made.folder / made.module).iterdir()) == [
        "__init__.py",
        "general.py",
        "general.txt",
    ]


@pytest.mark.parametrize("module", BUILTIN)
def test_a_copy_works_and_takes_a_command(
    registry: Registry, tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
):
    """Also one whose annotations name what is imported beside it, as a Typer command often does."""
    made = new_plugin(registry, "rqat-acme-new", module, parent=tmp_path)
    path = made.folder / made.module
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    code = file.read_text()
    assert "from __future__ import annotations" not in code
    assert not [name for name in made.names if f"`{name}`" in code]
    file.write_text(
        code + "\n@rqat.hookimpl\ndef register_commands(app):\n    from pathlib import Path\n\n"
        "    @app.command()\n    def acme_hello(at: Path):\n        print(at)\n"
    )
    monkeypatch.setenv(PATHS, str(path if path.is_dir() else file))
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = Registry.discover()
    app = typer.Typer()
    found.add_commands(app)
    del sys.modules[made.module]
    assert not found.broken
    assert {card.name for card in found.all_cards() if card.module == made.module} == set(made.names.values())
    assert [command.name for command in found.commands] == ["acme-hello"]


def test_annotations_that_are_not_there_yet_become_text():
    code = (
        "from __future__ import annotations\n\nfrom typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "\n\nclass A:\n    def f(self, x: torch.Tensor, é: int) -> A:\n        return self\n"
        "\n\ndef g(a: A, b: list[B]) -> None: ...\n\n\nclass B: ...\n"
    )
    made = without_future_annotations(code)
    assert "__future__" not in made
    assert 'def f(self, x: "torch.Tensor", é: int) -> "A":' in made
    assert 'def g(a: A, b: "list[B]") -> None: ...' in made
    exec(compile(made, "made", "exec"), {})
