"""A task: the same kind of problems to be evaluated on, graded by the number in the last box."""

import re
from collections.abc import Sequence

import rqat


class Options(rqat.TaskOptions):
    """Options of `my-squares`.

    Attributes:
        problems: how many.
    """

    problems: int = 50
    max_new_tokens: int = 64


class Squares(rqat.Task):
    options: Options

    def problems(self) -> Sequence[rqat.Row]:
        numbers = range(1001, 1001 + 10 * self.options.problems, 10)
        return [{"prompt": f"What is {n} squared?", "answer": str(n * n)} for n in numbers]

    def grade(self, completion: str, answer: str, row: rqat.Row) -> rqat.Verdict:
        boxed = re.findall(r"\\boxed\{([^{}]*)\}", completion)
        return "correct" if boxed and boxed[-1].strip() == answer else "wrong"


@rqat.hookimpl
def register_tasks(register: rqat.RegisterTask) -> None:
    register("my-squares", options=Options, load=":Squares", summary="squares of four-digit numbers", domain="math")
