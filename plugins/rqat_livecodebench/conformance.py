"""What `rqat plugins doctor` asks of the task: its answers are tests, so a program that passes them stands for one."""

from __future__ import annotations

import json
from typing import Any

import rqat.testing

from .task import tests_of


class LiveCodeBenchSuite(rqat.testing.TaskSuite):
    """Problems with tests, run by the sandbox that the options name."""

    name = "livecodebench"

    def test_it_accepts_its_own_answers(self) -> None:
        """A program that looks up what every test expects."""
        made = self.make()
        for number, row in enumerate(list(made.problems())[: self.problems]):
            verdict = made.grade(_answer(row), row["answer"], row)
            rqat.testing.expect(verdict == "correct", f"problem {number}: a program that passes is graded '{verdict}'")


def _answer(row: Any) -> str:
    """A completion whose program prints, for the input of every test, its output."""
    known = {each["input"]: each["output"] for text in ("public_tests", "hidden_tests") for each in tests_of(row[text])}
    if row["function"]:
        known = {json.dumps([json.loads(line) for line in given.splitlines()]): out for given, out in known.items()}
        body = f"    def {row['function']}(self, *given):\n        return json.loads(KNOWN[json.dumps(list(given))])"
        code = f"KNOWN = {known!r}\n\nclass Solution:\n{body}"
    else:
        code = f"KNOWN = {known!r}\nprint(KNOWN[sys.stdin.read()])"
    return f"It is known.\n```python\n{code}\n```\n"
