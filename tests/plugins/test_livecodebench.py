"""Task `livecodebench`: nothing is run without a sandbox; what one is given, and what its exit code means.

The sandboxes here are harmless: scripts that run nothing, or Python itself on programs that stand in this file.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from rqat.errors import DataError, RqatError
from rqat.registry import Registry
from rqat.testing import examine

PYTHON = f"{sys.executable} -I -"

TESTS = [
    {"input": "1 2\n", "output": "3\n", "testtype": "stdin"},
    {"input": "0.5 0.25\n", "output": "0.75", "testtype": "stdin"},
]

PROBLEM = {
    "question_content": "Add two numbers.",
    "contest_date": "2024-09-01T00:00:00",
    "public_test_cases": json.dumps(TESTS[:1]),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(json.dumps(TESTS[1:])))).decode(),
    "starter_code": "",
    "metadata": "{}",
}

METHOD = PROBLEM | {
    "contest_date": "2025-01-01",
    "starter_code": "class Solution:\n    def both(self, a: List[int], b: int) -> List[int]:\n        ",
    "metadata": json.dumps({"func_name": "both"}),
    "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional"}]),
    "private_test_cases": "[]",
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(PROBLEM) + "\n" + json.dumps(METHOD) + "\n")
    return path


def made(registry: Registry, file: Path, **options: Any) -> Any:
    card = registry.card("task", "livecodebench")
    return registry.make(card, registry.options(card, {"data": str(file), **options}))


def answered(code: str) -> str:
    return f"<think>\n```python\nraise SystemExit\n```\n</think>\nSo:\n```python\n{code}\n```\nDone."


def script(folder: Path, text: str) -> str:
    """The command of a sandbox that is a script of Python; it notes what it gets."""
    path = folder / "sandbox.py"
    path.write_text(f"import os, sys, time\ngiven = sys.stdin.read()\n{text}\n")
    return f"{sys.executable} -I {path}"


def test_without_a_sandbox_nothing_is_run(registry: Registry, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was run"))
    task = made(registry, file)
    with pytest.raises(RqatError, match=r"no sandbox is named.*--set sandbox='docker run"):
        task.problems()
    with pytest.raises(RqatError, match="no sandbox is named"):
        task.grade(answered("print(1)"), "", {})
    assert [problem.key for problem in task.options.check(None)] == ["sandbox"]


def test_problems_of_the_users_copy(registry: Registry, file: Path, tmp_path: Path) -> None:
    rows = made(registry, file, sandbox=PYTHON).problems()
    assert rows[0]["prompt"].startswith("Add two numbers.\n\nThe program reads from standard input")
    assert "complete this:\n\n```python\nclass Solution:" in rows[1]["prompt"]
    assert rows[0]["prompt"].endswith("What stands in the last such block is run.")
    assert rows[0]["answer"].startswith("tests ")
    assert rows[0]["answer"] != rows[1]["answer"]
    assert rows[1]["place"] == f"{file}:2"
    assert len(made(registry, file, sandbox=PYTHON, since="2024-10-01").problems()) == 1
    with pytest.raises(DataError, match=r"holds no problems since 2025-02-01 until 2025-03-01"):
        made(registry, file, sandbox=PYTHON, since="2025-02-01", until="2025-03-01").problems()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "test.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert len(made(registry, folder, sandbox=PYTHON).problems()) == 2
    with pytest.raises(RqatError, match="'soon' is no day such as 2024-08-01"):
        made(registry, file, since="soon")


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("a, b = input().split()\nprint(float(a) + float(b))", "correct"),  # 3.0 is 3
        ("a, b = input().split()\nprint(3 if a == '1' else 0.5)", "wrong"),  # a hidden test
        ("import os\nprint(3)\nos._exit(0)", "wrong"),  # ends well, and prints what only one test wants
        ("import sys\nsys.exit(0)", "wrong"),
        ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", "unverifiable"),
        ("import os, shutil\nshutil.rmtree(os.getcwd())\nprint(3)", "wrong"),
        ("print(", "wrong"),
        ("while True: pass", "wrong"),
        ("while True: print('3' * 9999)", "wrong"),
    ],
)
def test_a_program_passes_by_what_it_prints_alone(registry: Registry, file: Path, code: str, verdict: str) -> None:
    task = made(registry, file, sandbox=PYTHON, test_s=0.3)
    assert task.grade(answered(code), "", task.problems()[0]) == verdict


def test_methods_are_called(registry: Registry, file: Path) -> None:
    task = made(registry, file, sandbox=PYTHON)
    row = task.problems()[1]
    right = "class Solution:\n    def both(self, a: List[int], b: int):\n        print('!')\n        return (*a, b)"
    assert task.grade(answered(right), "", row) == "correct"
    assert task.grade(answered(right.replace("(*a, b)", "[b, *a]")), "", row) == "wrong"


@pytest.mark.parametrize(
    "completion", ["", "print(3)", "<think>```python\nprint(3)\n```", "```python\n\n```", "```python\nprint(3)"]
)
def test_what_holds_no_program_is_wrong_and_runs_nothing(
    registry: Registry, file: Path, completion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    task = made(registry, file, sandbox=PYTHON)
    row = task.problems()[0]
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was run"))
    assert task.grade(completion, "", row) == "wrong"


def test_a_sandbox_gets_the_program_and_no_secrets(
    registry: Registry, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    noted = tmp_path / "noted"
    ending = "sys.exit(99 if '99)' in given else 0)"
    command = script(tmp_path, f"open({str(noted)!r}, 'a').write(repr(sorted(os.environ)) + given + '\\n')\n{ending}")
    task = made(registry, file, sandbox=command)
    assert task.grade(answered("print(123454321)"), "", task.problems()[0]) == "correct"
    assert "print(123454321)" in noted.read_text()
    assert "HF_TOKEN" not in noted.read_text()
    in_file = f"{PYTHON[:-1]} {{file}}"
    task = made(registry, file, sandbox=in_file)
    assert task.grade(answered("print(sum(map(float, input().split())))"), "", task.problems()[0]) == "correct"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pass", "takes a program that ends with exit code 0 for correct, and one that ends with 99 for correct"),
        ("sys.exit(99)", "takes a program that ends with exit code 0 for wrong"),
        ("print('no daemon', file=sys.stderr); sys.exit(125)", "failed with exit code 125: no daemon"),
        ("os.abort()", "for unverifiable"),
    ],
)
def test_what_is_no_sandbox_is_told_before_any_work(
    registry: Registry, file: Path, tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(RqatError, match=told):
        made(registry, file, sandbox=script(tmp_path, text)).problems()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("/nowhere/docker run", "'/nowhere/docker' cannot be run: No such file"),
        ("a 'b", "is no command line"),
        (" ", "empty"),
    ],
)
def test_what_is_no_command(registry: Registry, file: Path, command: str, told: str) -> None:
    with pytest.raises(RqatError, match=told):
        made(registry, file, sandbox=command).problems()


def test_a_sandbox_that_hangs_is_ended(
    registry: Registry, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rqat_livecodebench import sandbox

    noted = tmp_path / "pid"
    command = script(tmp_path, f"open({str(noted)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")
    monkeypatch.setattr(sandbox, "GRACE_S", 0.3)
    assert sandbox.run(command, "pass", 0.2) == "unverifiable"
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)


class _Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def _packed(pickled: bytes) -> str:
    return base64.b64encode(zlib.compress(pickled)).decode()


GREEDY = b"\x80\x02X\x01\x00\x00\x00ar\xff\xff\xff\x7f."
"""A pickle that would make an unpickler keep room for two billion values."""


@pytest.mark.parametrize(
    "hidden",
    [
        *("{", "AAAA", '[{"input": "1"}]', "7"),
        *map(_packed, (pickle.dumps(_Bomb()), pickle.dumps(["[]"]), pickle.dumps(1), GREEDY, b"\x80\x04X")),
    ],
)
def test_tests_that_are_none_run_nothing(
    registry: Registry, tmp_path: Path, hidden: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(PROBLEM | {"private_test_cases": hidden}))
    task = made(registry, file, sandbox=PYTHON)
    with pytest.raises(DataError, match="Tests that cannot be read"):
        task.grade(answered("print(3)"), "", task.problems()[0])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{\n", r"bad\.jsonl:1: not JSON"),
        ("[1]\n", r"bad\.jsonl:1: a problem needs the fields 'question_content'"),
        (json.dumps(PROBLEM | {"metadata": "{"}), "a problem needs"),
        ("\n", "holds no problems"),
        ("\udcff", "cannot be read"),
    ],
)
def test_bad_files(registry: Registry, tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=told):
        made(registry, file, sandbox=PYTHON).problems()


def test_its_own_suite_passes(registry: Registry, file: Path) -> None:
    """With both kinds of problems: programs that read and print, and methods."""
    card = registry.card("task", "livecodebench")
    found = examine(registry, card, {"data": str(file), "sandbox": PYTHON})
    assert {result.test for result in found} >= {"it accepts its own answers", "it rejects other answers"}
    assert not [(result.test, result.error) for result in found if result.error or result.skipped]
