"""`rqat plugins new`: what is written, and what is refused."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from rqat import PluginError, RunError, UnknownName
from rqat.registry import BUILTIN, Registry
from rqat.scaffold import new_plugin, rename


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def test_only_registered_names_change():
    code = '# "a" stays\nx = "a"\n\ndef hook(register):\n    register("a", load=":A", summary="a é")  # "a"\n'
    code += '    register(\n        "b",\n        load=":B",\n    )\n    other("a")\n'
    assert rename(code, {"a": "new", "b": "newer"}) == code.replace('register("a"', 'register("new"').replace(
        '"b"', '"newer"'
    )


@pytest.mark.parametrize("like", ["gptq", "rqat_gptq"])
def test_a_package_is_copied_whole(registry: Registry, tmp_path: Path, like: str):
    made = new_plugin(registry, "rqat-acme-quant", like, parent=tmp_path)
    original = Path(__file__).parents[2] / "plugins" / "rqat_gptq"
    copied = made.folder / made.module
    names = sorted(path.name for path in original.glob("*.py"))
    assert sorted(path.name for path in copied.iterdir()) == names
    for name in names:
        if name != "__init__.py":
            assert (copied / name).read_bytes() == (original / name).read_bytes()
    expected = (original / "__init__.py").read_text().replace('        "gptq",', '        "acme-quant",')
    assert (copied / "__init__.py").read_text() == expected
    assert made.commands == (f"cd {made.folder}", "pip install -e .", "pytest")


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
    assert made.names == {"gsm8k": "acme-gsm8k", "math500": "acme-math500"}


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
    with pytest.raises(PluginError, match="rqat_data and of rqat_math"):
        new_plugin(registry, "rqat-acme", "gsm8k", parent=tmp_path)
    assert not list(tmp_path.iterdir())
