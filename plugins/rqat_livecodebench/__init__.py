"""Task `livecodebench`: programs that a model writes, run on tests by a sandbox of the user's."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from pydantic import Field, field_validator

import rqat

INSTRUCTION = (
    "Write a Python program that solves this problem. Reason as long as you need to; then put the whole program into "
    "one block that begins with ```python and ends with ```. What stands in the last such block is run."
)
"""Put after every problem."""

NO_SANDBOX = rqat.Problem(
    "'livecodebench' runs programs that a model has written, and no sandbox is named to run them in.",
    "Name its command, e.g. --set sandbox='docker run -i --rm --network none --memory 2g --pids-limit 64 "
    "python:3.12-slim python -'; docs/howto/evaluate.md says what it has to keep them from.",
    "sandbox",
)
"""What is said without a command."""


class LiveCodeBenchOptions(rqat.TaskOptions):
    """Options of `livecodebench`; the sampling is the protocol of arXiv 2504.04823.

    Attributes:
        data: your copy of the problems: a `.jsonl` or `.jsonl.gz` file of `livecodebench/code_generation_lite`, or a
            folder of such.
        sandbox: the command that runs a program, which it gets on stdin, or in a file where the command says `{file}`;
            its exit code is 0 where the program's is. Without it nothing is run, and the task is refused.
        since: first day, as `2024-08-01`, of the contests whose problems are used; "" is all.
        until: last day; "" is all.
        instruction: put after every problem; empty for none.
        test_s: seconds that one test may take.
        program_s: seconds that all tests of a program may take together, the sandbox's start included.
    """

    max_new_tokens: int = 32_768
    temperature: float = 0.6
    top_p: float = 0.95
    seeds: tuple[int, ...] = (42, 43, 44)
    sandbox: rqat.Command | None = None
    since: str = ""
    until: str = ""
    instruction: str = INSTRUCTION
    test_s: float = Field(default=6.0, gt=0)
    program_s: float = Field(default=120.0, gt=0)

    @field_validator("since", "until")
    @classmethod
    def _is_day(cls, given: str) -> str:
        try:
            return given and date.fromisoformat(given).isoformat()
        except ValueError as error:
            raise ValueError(f"'{given}' is no day such as 2024-08-01.") from error

    def check(self, context: rqat.Context) -> Iterable[rqat.Problem]:
        """Without a sandbox there is no such task."""
        return [] if self.sandbox is not None else [NO_SANDBOX]


@rqat.hookimpl
def register_tasks(register: rqat.RegisterTask) -> None:
    """The card of `livecodebench`."""
    register(
        "livecodebench",
        options=LiveCodeBenchOptions,
        load=".task:LiveCodeBench",
        summary="programs for contest problems, from a file of yours, run by a sandbox of yours",
        paper="2403.07974",
        domain="code",
    )
