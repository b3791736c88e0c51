"""`rqat plugins`."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from rqat.cli.app import build


def test_ls_names_everything_with_its_owner_and_options() -> None:
    result = CliRunner().invoke(build(), ["plugins", "ls", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    rtn = next(part for part in found["parts"] if part["name"] == "rtn")
    assert (rtn["kind"], rtn["module"], rtn["owner"]) == ("quantizer", "rqat_rtn", "rqat")
    assert "clip" in rtn["options"]
    assert found["broken"] == found["clashes"] == []


def test_plugins_alone_is_ls() -> None:
    assert CliRunner().invoke(build(), ["plugins"]).stdout == CliRunner().invoke(build(), ["plugins", "ls"]).stdout


def test_doctor_runs_the_suite_of_a_part() -> None:
    result = CliRunner().invoke(build(), ["plugins", "doctor", "rtn"])
    assert result.exit_code == 0, result.stdout
    assert "the result is on the grid" in result.stdout
    assert "FAILED" not in result.stdout


def test_doctor_of_a_part_nobody_offers() -> None:
    result = CliRunner().invoke(build(), ["plugins", "doctor", "rtm"])
    assert result.exit_code == 2
    assert "Did you mean 'rtn'" in result.stderr
