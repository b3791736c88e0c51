"""`rqat plugins`, and plugins given by their path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rqat.cli.app import build
from rqat.registry import Registry
from tests.plugin_maker import QUANTIZER, write_plugin

ACME = QUANTIZER.format(name="acme", load=":Acme")
COMMAND = '''
@rqat.hookimpl
def register_commands(app):
    @app.command("greet")
    def greet():
        """Say hello."""
        print("hello")
'''


def rqat_command(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "rqat", *words],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def acme(tmp_path: Path) -> Path:
    """A plugin in a single file."""
    file = tmp_path / "acme_by_path.py"
    file.write_text(ACME + COMMAND)
    return file


# ------------------------------------------------------------------------------------------------------------- ls


def test_ls_names_everything_with_its_owner_and_options() -> None:
    result = CliRunner().invoke(build(), ["plugins", "ls", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    rtn = next(part for part in found["parts"] if part["name"] == "rtn")
    assert (rtn["kind"], rtn["module"], rtn["owner"]) == ("quantizer", "rqat_rtn", "rqat")
    assert "clip" in rtn["options"]
    assert found["broken"] == found["clashes"] == found["shadowed"] == []


def test_plugins_alone_is_ls() -> None:
    assert CliRunner().invoke(build(), ["plugins"]).stdout == CliRunner().invoke(build(), ["plugins", "ls"]).stdout


def test_ls_tells_what_is_broken_and_with_v_where(tmp_path: Path) -> None:
    (tmp_path / "acme_broken.py").write_text("def inner():\n    raise ValueError('oh no')\ninner()\n")
    short = rqat_command("plugins", "--plugin", "acme_broken.py", cwd=tmp_path)
    assert short.returncode == 0, short.stderr
    assert "broken: acme_broken (acme_broken.py): ValueError: oh no" in short.stdout
    assert "in inner" not in short.stdout
    assert "in inner" in rqat_command("plugins", "--plugin", "acme_broken.py", "-v", cwd=tmp_path).stdout


def test_ls_tells_whose_a_name_is_and_lists_commands(tmp_path: Path) -> None:
    (tmp_path / "acme_gptq.py").write_text(QUANTIZER.format(name="gptq", load=":Acme") + COMMAND)
    shown = rqat_command("plugins", "ls", "--plugin=acme_gptq.py", cwd=tmp_path).stdout
    assert "quantizer 'gptq' (acme_gptq, acme_gptq.py 0): the name is rqat's own (rqat_gptq); this one is" in shown
    assert "this one is acme_gptq:gptq" in shown
    assert any(line.split()[:2] == ["command", "greet"] and "Say hello." in line for line in shown.splitlines())


# ----------------------------------------------------------------------------------------------------------- show


def test_show_says_options_class_file_and_owner() -> None:
    result = CliRunner().invoke(build(), ["plugins", "show", "gptq", "--kind", "quantizer"])
    assert result.exit_code == 0, result.output
    for text in ("rqat_gptq.solver.Gptq", "plugins/rqat_gptq/solver.py", "rqat_gptq (rqat 0.1.0)", "hessian", "2210"):
        assert text in result.stdout
    assert "damp" in result.stdout
    assert "share of the Hessian's mean diagonal" in result.stdout
    assert "exporter" not in result.stdout
    assert "exporter gptq" in CliRunner().invoke(build(), ["plugins", "show", "gptq"]).stdout


def test_show_as_json_of_a_whole_plugin() -> None:
    shown = json.loads(CliRunner().invoke(build(), ["plugins", "show", "rqat-math", "--json"]).stdout)
    parts = {part["name"]: part for part in shown}
    assert sorted(parts) == [part["name"] for part in shown] == ["aime120", "gpqa-diamond", "gsm8k", "math500"]
    assert parts["gsm8k"]["domain"] == "math"
    option = next(row for row in parts["gsm8k"]["options"] if row["name"] == "seeds")
    assert option == {
        "name": "seeds",
        "type": "tuple[int, ...]",
        "default": "(42, 43, 44)",
        "meaning": "one run per seed; with `temperature: 0` one is enough.",
    }


def test_show_of_what_nobody_offers() -> None:
    result = CliRunner().invoke(build(), ["plugins", "show", "gptk"])
    assert result.exit_code == 2
    assert "'gptk' is not a part or plugin" in result.stderr
    assert "Did you mean 'gptq'" in result.stderr


# --------------------------------------------------------------------------------------------------------- by path


def test_a_plugin_given_by_its_path_works_in_every_command(acme: Path, tmp_path: Path) -> None:
    for words in (["--plugin", acme.name, "greet"], ["greet", "--plugin", str(acme)], ["greet", f"--plugin={acme}"]):
        done = rqat_command(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    assert rqat_command("greet", cwd=tmp_path, RQAT_PLUGINS=str(acme)).stdout == "hello\n"
    plan = ("plan", "quickstart", "--set", "compare.0=acme", "--set", "name=x")
    assert "acme_by_path" in rqat_command(*plan, "--plugin", acme.name, cwd=tmp_path).stdout
    assert "'acme' is not a quantizer" in rqat_command(*plan, cwd=tmp_path).stderr


def test_a_package_can_be_given_by_its_path(tmp_path: Path) -> None:
    package = tmp_path / "away" / "acme_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(QUANTIZER.format(name="acme", load=".solver:Acme"))
    (package / "solver.py").write_text("from . import Acme\n")
    shown = rqat_command("plugins", "show", "acme", "--json", "--plugin", "away/acme_package", cwd=tmp_path)
    assert json.loads(shown.stdout)[0]["file"] == str(package / "solver.py"), shown.stderr


def test_a_path_where_no_plugin_is(tmp_path: Path) -> None:
    done = rqat_command("plan", "quickstart", "--plugin", "nosuch.py", cwd=tmp_path)
    assert done.returncode == 2
    assert f"--plugin nosuch.py: there is no file {tmp_path / 'nosuch.py'}" in done.stderr
    (tmp_path / "json.py").write_text(ACME)
    assert "another module 'json'; rename" in rqat_command("plan", "x", "--plugin", "json.py", cwd=tmp_path).stderr
    (tmp_path / "rqat_gptq.py").write_text(ACME)
    assert "reserved" in rqat_command("plan", "x", "--plugin", "rqat_gptq.py", cwd=tmp_path).stderr
    (tmp_path / "not-a-name.py").write_text(ACME)
    assert "Python can import" in rqat_command("plan", "x", "--plugin", "not-a-name.py", cwd=tmp_path).stderr


def test_a_broken_part_of_a_plugin_given_by_its_path_is_told_and_the_others_work(tmp_path: Path) -> None:
    (tmp_path / "acme_half.py").write_text(ACME + "    register('bad', rollouts=True)\n" + COMMAND)
    done = rqat_command("greet", "--plugin", "acme_half.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "Warning: acme_half (acme_half.py): register_quantizers: 'rollouts' is not a keyword" in done.stderr


def test_spawned_processes_find_a_plugin_given_by_its_path(acme: Path, tmp_path: Path) -> None:
    (tmp_path / "spawning.py").write_text(
        "import multiprocessing, sys\n"
        "from rqat.cli.app import add_paths\n"
        "from rqat.registry import Registry\n"
        "if __name__ == '__main__':\n"
        f"    add_paths([{str(acme)!r}])\n"
        "    made = Registry.discover().card('quantizer', 'acme').options()\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(repr, (made,)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", tmp_path / "spawning.py"], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert done.stdout == "Options(strength=0.5)\n", done.stderr


def test_a_command_that_could_not_be_added_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "acme_raises.py").write_text("import rqat\n" + COMMAND.replace("    @app", "    1 / 0\n    @app"))
    done = rqat_command("greet", "--plugin", "acme_raises.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "There is no command 'greet'" in done.stderr
    assert "acme_raises (acme_raises.py): register_commands: ZeroDivisionError" in done.stderr


def test_a_command_whose_annotations_cannot_be_read_is_told_why(tmp_path: Path) -> None:
    code = "from __future__ import annotations\nimport rqat\n" + COMMAND.replace("def greet()", "def greet(at: Path)")
    code = code.replace("    @app", "    from pathlib import Path\n    @app")
    (tmp_path / "acme_hidden.py").write_text(code)
    shown = rqat_command("plugins", "--plugin", "acme_hidden.py", cwd=tmp_path).stdout
    assert "its annotations name 'Path', which Typer cannot find: import it at the top of the module" in shown


def test_a_name_that_disables_nothing_is_told(tmp_path: Path) -> None:
    done = rqat_command("plugins", cwd=tmp_path, RQAT_DISABLE_PLUGINS="nosuch")
    assert "Warning: RQAT_DISABLE_PLUGINS: 'nosuch' is no plugin." in done.stderr


# --------------------------------------------------------------------------------------------------------- doctor


def test_doctor_runs_the_suite_of_a_part() -> None:
    result = CliRunner().invoke(build(), ["plugins", "doctor", "rtn"])
    assert result.exit_code == 0, result.stdout
    assert "the result is on the grid" in result.stdout
    assert "FAILED" not in result.stdout


def test_doctor_of_a_part_nobody_offers() -> None:
    result = CliRunner().invoke(build(), ["plugins", "doctor", "rtm"])
    assert result.exit_code == 2
    assert "Did you mean 'rtn'" in result.stderr


@pytest.mark.slow
def test_doctor_of_one_plugin_does_not_fail_for_another(tmp_path: Path) -> None:
    (tmp_path / "acme_broken.py").write_text("import nowhere_to_be_found\n")
    whole = rqat_command("plugins", "doctor", "rtn", "--plugin", "acme_broken.py", cwd=tmp_path)
    assert whole.returncode == 0, whole.stdout
    assert "acme_broken" not in whole.stdout
    broken = rqat_command("plugins", "doctor", "acme-broken", "--plugin", "acme_broken.py", cwd=tmp_path)
    assert broken.returncode == 1
    assert "FAILED  acme_broken (acme_broken.py): ModuleNotFoundError: No module named 'nowhere_" in broken.stdout


def test_show_and_doctor_know_a_plugin_by_its_command_and_its_entry_point(tmp_path: Path) -> None:
    """What `rqat plugins ls` lists can be asked for: a command, and a plugin by the name pyproject.toml gives it."""
    greeter, dull = "import rqat\n" + COMMAND, "import rqat, numpy\n" + COMMAND.replace("greet", "bow")
    codes = {"acme-greet": greeter, "acme-dull": dull.replace('"""Say hello."""', ""), "acme-old": "RQAT_API = 'old'\n"}
    for entry, code in codes.items():
        write_plugin(tmp_path, f"of-{entry}", code, module=entry.replace("-", "_") + "_module")
        entry_points = tmp_path / f"of_{entry.replace('-', '_')}-1.2.dist-info" / "entry_points.txt"
        entry_points.write_text(f"[rqat]\n{entry} = {entry.replace('-', '_')}_module\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])

    def told(*words: str, code: int) -> str:
        done = rqat_command("plugins", *words, cwd=tmp_path, PYTHONPATH=path)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    for name in ("greet", "acme-greet", "acme_greet_module", "of-acme-greet"):
        assert "command greet\n  summary    Say hello." in told("show", name, code=0)
    assert json.loads(told("show", "greet", "--json", code=0))[0]["kind"] == "command"
    good = told("doctor", "acme-greet", code=0)
    assert "command 'greet' (acme_greet_module, of-acme-greet)\n  good    the command says what it is\n" in good
    assert "good    its plugin is light" in good
    bad = told("doctor", "bow", code=1)
    assert "FAILED  the command says what it is: it has no help" in bad
    assert "FAILED  its plugin is light: acme_dull_module imports numpy whenever rqat starts" in bad
    assert "FAILED  acme_old_module (of-acme-old): it says RQAT_API = 'old'" in told("doctor", "acme-old", code=1)
    assert "broken: acme_old_module (of-acme-old): it says RQAT_API" in told("show", "acme-old", code=0)
    assert "Did you mean 'acme_old_module'?" in told("doctor", "acme_old_modul", code=2)
    whole = told("doctor", code=1)
    assert all(word in whole for word in ("'greet'", "'bow'", "acme_old_module"))


def test_doctor_of_a_plugin_with_a_broken_part(tmp_path: Path) -> None:
    (tmp_path / "acme_half.py").write_text(
        "import rqat\n@rqat.hookimpl\ndef register_rewards(register):\n"
        "    register('bad', lod=':A')\n    register('good', load=':A', summary='good')\n"
        "class A(rqat.Reward):\n    def score(self, completion, row, verdict):\n        return 1.0\n"
    )
    done = rqat_command("plugins", "doctor", "good", "--plugin", "acme_half.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "FAILED  acme_half (acme_half.py): register_rewards: 'lod' is not a keyword" in done.stdout
    assert "did you mean 'load'?" in done.stdout
    assert "good    scores are finite numbers" in done.stdout


@pytest.mark.slow
def test_doctor_says_once_what_stops_every_test(tmp_path: Path) -> None:
    (tmp_path / "acme_old.py").write_text(ACME.replace("(self, weight, stats, scheme)", "(self, weight)"))
    done = rqat_command("plugins", "doctor", "acme", "--plugin", "acme_old.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("it is called with") == 1
    assert done.stdout.count("FAILED") > 3
    assert "FAILED  odd weights: as 'a whole block'" in done.stdout


@pytest.mark.slow
def test_a_card_that_imports_torch_fails(tmp_path: Path) -> None:
    (tmp_path / "acme_heavy.py").write_text("import torch, numpy\n" + ACME)
    done = rqat_command("plugins", "doctor", "acme", "--plugin", "acme_heavy.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "FAILED  the card is light: acme_heavy imports numpy, " in done.stdout
    assert "torch whenever rqat starts" in done.stdout


def test_doctor_runs_the_suites_a_plugin_brings(tmp_path: Path) -> None:
    (tmp_path / "acme_own.py").write_text(
        "import rqat\n@rqat.hookimpl\ndef register_rewards(register):\n"
        "    register('own', load=':A', summary='own')\n    register('other', load=':A', summary='other')\n"
        "class A(rqat.Reward):\n    def score(self, completion, row, verdict):\n        return 1.0\n"
    )
    (tmp_path / "acme_own_conformance.py").write_text(
        "import rqat.testing\nclass Own(rqat.testing.RewardSuite):\n    name = 'own'\n"
        "    def test_what_only_this_one_promises(self):\n        rqat.testing.expect(False, 'it was run')\n"
    )
    done = rqat_command("plugins", "doctor", "acme_own", "--plugin", "acme_own.py", cwd=tmp_path)
    assert done.stdout.count("what only this one promises: it was run") == 1
    assert done.stdout.count("good    scores are finite numbers") == 2


@pytest.mark.slow
def test_the_readmes_quantizer_passes_doctor(tmp_path: Path) -> None:
    readme = Path(__file__).parents[3] / "README.md"
    section = readme.read_text(encoding="utf-8").partition("## Write your own quantizer")[2]
    (tmp_path / "my_quant.py").write_text(section.partition("```python\n")[2].partition("```")[0])
    done = rqat_command("plugins", "doctor", "mine", "--plugin", "my_quant.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "good    the output is closer than zero" in done.stdout


def test_a_plugin_of_the_registry_is_imported_once(acme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RQAT_PLUGINS", str(acme))
    monkeypatch.setattr(sys, "path", list(sys.path))
    first, second = Registry.discover(), Registry.discover()
    assert first.card("quantizer", "acme").options is second.card("quantizer", "acme").options
    del sys.modules["acme_by_path"]
