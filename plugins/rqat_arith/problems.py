"""Multi-step arithmetic word problems, made by a seeded generator: no file, no network, no end.

A problem is a *chain*: a start value and a list of (operation, operand). A story is told around it, and its solution is
one equation per line, then the answer in a box:

    Mia has 34 shells. A friend gives Mia 25. The pile triples. How many shells does Mia have now?
    34+25=59
    59*3=177
    \\boxed{177}

The split of a problem is a hash of its chain, not of its wording: the same arithmetic is never told in two splits.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from .wording import NAMED_STEPS, NAMES, OPENINGS, QUESTIONS, STEPS, THINGS

Split = Literal["train", "validation", "test"]
Step = tuple[str, int]
T = TypeVar("T")

LARGEST = 499
"""No value of a chain is larger than this, nor smaller than 1."""

SPLIT_PERCENT: dict[Split, range] = {"test": range(10), "validation": range(10, 20), "train": range(20, 100)}
"""Which residues (of 100) of a chain's hash belong to which split."""


@dataclass(frozen=True)
class Problem:
    """One story and its worked solution. `answer` is what stands in the box; `steps` counts the equations."""

    prompt: str
    solution: str
    answer: str
    steps: int


def problems(split: Split, *, seed: int, steps: tuple[int, int], limit: int | None = None) -> Iterator[Problem]:
    """Yield the problems of a split: the same for the same arguments on every machine and Python version.

    `steps` is the smallest and largest number of equations, both included; `limit` is how many problems to yield
    (None: without end). A smaller limit yields a prefix of a larger one. Raises ValueError on an unknown split, an
    empty range of steps or a negative limit.
    """
    if split not in SPLIT_PERCENT:
        raise ValueError(f"split {split!r} is unknown. Known: {', '.join(sorted(SPLIT_PERCENT))}.")
    shortest, longest = steps
    if not 1 <= shortest <= longest:
        raise ValueError(f"steps {steps} is not a range (smallest, largest) with 1 <= smallest <= largest.")
    if limit is not None and limit < 0:
        raise ValueError(f"limit {limit} is negative. Give None for no limit.")
    return _stream(split, seed, shortest, longest, limit)


def split_of(start: int, chain: Sequence[Step]) -> Split:
    """The split that a chain belongs to, whatever seed or wording it came with."""
    text = str(start) + "".join(f"{operation}{operand}" for operation, operand in chain)
    residue = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    return next(split for split, percent in SPLIT_PERCENT.items() if residue in percent)


def _stream(split: Split, seed: int, shortest: int, longest: int, limit: int | None) -> Iterator[Problem]:
    rng = random.Random(f"{split}/{seed}/{shortest}-{longest}")
    yielded = 0
    while limit is None or yielded < limit:
        start, chain = _chain(rng, _between(rng, shortest, longest))
        if split_of(start, chain) == split:
            yield _tell(rng, start, chain)
            yielded += 1


def _chain(rng: random.Random, length: int) -> tuple[int, list[Step]]:
    start = value = _between(rng, 2, 99)
    chain: list[Step] = []
    for _ in range(length):
        operation, operand = _step(rng, value)
        chain.append((operation, operand))
        value = _apply(value, operation, operand)
    return start, chain


def _step(rng: random.Random, value: int) -> Step:
    """Draw an operation that keeps the value within 1..LARGEST, then its operand."""
    divisors = [k for k in range(2, 10) if value % k == 0 and value > k]
    operations = ["+"] if value <= LARGEST - 10 else []
    operations += ["-"] if value > 10 else []
    operations += ["*"] if 2 * value <= LARGEST else []
    operations += ["/"] if divisors else []
    operation = _pick(rng, operations)
    if operation == "+":
        return operation, _between(rng, 2, min(LARGEST - value, 99))
    if operation == "-":
        return operation, _between(rng, 2, min(value - 1, 99))
    if operation == "*":
        return operation, _between(rng, 2, min(LARGEST // value, 9))
    return operation, _pick(rng, divisors)


def _apply(value: int, operation: str, operand: int) -> int:
    if operation == "+":
        return value + operand
    if operation == "-":
        return value - operand
    return value * operand if operation == "*" else value // operand


def _tell(rng: random.Random, start: int, chain: Sequence[Step]) -> Problem:
    words = {"who": _pick(rng, NAMES), "what": _pick(rng, THINGS)}
    story = [_pick(rng, OPENINGS).format(n=start, **words)]
    lines = []
    value = start
    for operation, operand in chain:
        template = NAMED_STEPS.get((operation, operand))
        if template is None or rng.random() < 0.5:
            template = _pick(rng, STEPS[operation])
        story.append(template.format(n=operand, **words))
        result = _apply(value, operation, operand)
        lines.append(f"{value}{operation}{operand}={result}")
        value = result
    story.append(_pick(rng, QUESTIONS).format(**words))
    lines.append(f"\\boxed{{{value}}}")
    return Problem(prompt=" ".join(story) + "\n", solution="\n".join(lines), answer=str(value), steps=len(chain))


# Only `random()` is promised to give the same numbers in every Python version; `choice` and `randint` are not.
def _between(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]
