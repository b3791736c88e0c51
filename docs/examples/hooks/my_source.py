"""A source: squares of whole numbers, worked out."""

import random
from collections.abc import Iterator

from pydantic import Field

import rqat


class Options(rqat.Options):
    """Options of `my-squares`.

    Attributes:
        largest: number that is squared.
    """

    largest: int = Field(default=999, ge=20)


class Squares(rqat.Source):
    options: Options

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        remainder = {"validation": [0], "test": [1]}.get(split, range(2, 10))
        numbers = [n for n in range(self.options.largest + 1) if n % 10 in remainder]
        random.Random(seed).shuffle(numbers)
        for number in numbers:
            answer = str(number * number)
            yield {"prompt": f"What is {number} squared?", "completion": f"\\boxed{{{answer}}}", "answer": answer}


@rqat.hookimpl
def register_sources(register: rqat.RegisterSource) -> None:
    register("my-squares", options=Options, load=":Squares", summary="squares of whole numbers", domain="math")
