"""The arithmetic stories: the same everywhere, never the same in two splits, and right."""

from __future__ import annotations

import hashlib
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest

import rqat
from rqat_arith.problems import LARGEST, Problem, Split, problems
from rqat_arith.tokenizer import VOCABULARY, build_tokenizer
from rqat_arith.wording import NAMED_STEPS, sentences

SPLITS: tuple[Split, ...] = get_args(Split)
OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: Fraction(a, b),
}


def take(split: Split, limit: int = 300, seed: int = 0, steps: tuple[int, int] = (1, 12)) -> list[Problem]:
    return list(problems(split, seed=seed, steps=steps, limit=limit))


def equations(problem: Problem) -> list[tuple[int, str, int, int]]:
    lines = problem.solution.splitlines()[:-1]
    found = [re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", line) for line in lines]
    assert all(found), problem.solution
    return [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in found if m]


@pytest.mark.parametrize("split", SPLITS)
def test_every_step_is_right_and_follows_from_the_story(split: Split) -> None:
    for problem in take(split):
        steps = equations(problem)
        told = [int(number) for number in re.findall(r"\d+", problem.prompt)]
        value = told[0]
        for left, operation, operand, result in steps:
            assert left == value
            assert operand in told or (operation, operand) in NAMED_STEPS
            assert OPERATIONS[operation](left, operand) == result
            assert 1 <= result <= LARGEST
            value = result
        assert problem.answer == str(value)
        assert problem.solution.splitlines()[-1] == f"\\boxed{{{value}}}"
        assert problem.steps == len(steps)


def test_the_same_arguments_give_the_same_problems() -> None:
    assert take("train", 50) == take("train", 200)[:50]
    assert take("train", 50) != take("train", 50, seed=1)
    assert [p for p, _ in zip(problems("train", seed=0, steps=(1, 12)), range(50), strict=False)] == take("train", 50)


def test_the_problems_are_the_same_on_every_machine() -> None:
    text = "".join(p.prompt + p.solution for split in SPLITS for p in take(split, 100))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "c0d87fc8b690aa784029aac7a2e81325c4427989f04040396a7c45d83bf55991"
    )


def test_no_chain_is_in_two_splits() -> None:
    # One-step chains are few enough that the splits would meet if they were drawn without regard to each other.
    chains = {split: {tuple(equations(p)) for p in take(split, 1500, steps=(1, 2))} for split in SPLITS}
    assert not chains["train"] & chains["test"]
    assert not chains["train"] & chains["validation"]
    assert not chains["validation"] & chains["test"]


def test_the_range_of_steps_is_kept() -> None:
    assert {p.steps for p in take("train", 200, steps=(3, 5))} == {3, 4, 5}
    assert {p.steps for p in take("test", 20, steps=(7, 7))} == {7}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"split": "dev", "seed": 0, "steps": (1, 2)}, "test, train, validation"),
        ({"split": "train", "seed": 0, "steps": (4, 2)}, "smallest"),
        ({"split": "train", "seed": 0, "steps": (0, 2)}, "smallest"),
        ({"split": "train", "seed": 0, "steps": (1, 2), "limit": -1}, "negative"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        problems(**arguments)


def test_the_tokenizer_loses_nothing() -> None:
    tokenizer = build_tokenizer()
    texts = [p.prompt + p.solution for p in take("train", 200)]
    assert tokenizer.batch_decode(tokenizer(texts).input_ids) == texts
    for text in ("", "Zoë wrote 1,000 lines;\n\n  then 7 \\boxed{x}.", "naïve 日本 🙂", "MiaMia apples12"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_word_is_one_token_and_a_digit_another() -> None:
    tokenizer = build_tokenizer()
    assert len(tokenizer) == VOCABULARY
    assert len(tokenizer.encode("Mia buys 25 apples.")) == len(["Mia", " buys", " 2", "5", " apples", "."])
    for template in sentences():
        sentence = template.format(who="Mia", what="apples", n=7)
        assert len(tokenizer.encode(sentence)) == len(re.findall(r"\w+|[.,?]", sentence)), sentence


def test_the_prompt_ends_where_the_solution_begins() -> None:
    """Trainers tokenize prompt and prompt + completion apart, and expect one to begin with the other."""
    tokenizer = build_tokenizer()
    for problem in take("train", 50):
        whole, prompt = tokenizer.encode(problem.prompt + problem.solution), tokenizer.encode(problem.prompt)
        assert whole[: len(prompt)] == prompt


def test_the_shipped_model_has_the_tokenizer_that_the_source_builds() -> None:
    # A word added to wording.py moves every token after it: the model would have to be trained again.
    shipped = Path(rqat.__file__).parent / "assets" / "tiny-reasoner" / "tokenizer.json"
    assert json.loads(build_tokenizer().backend_tokenizer.to_str())["model"] == json.loads(shipped.read_text())["model"]


@pytest.mark.parametrize(("steps", "tokens"), [(12, 256), (24, 448)])
def test_the_longest_stories_fit(steps: int, tokens: int) -> None:
    tokenizer = build_tokenizer()
    longest = take("train", 300, steps=(steps, steps))
    assert max(len(ids) for ids in tokenizer([p.prompt + p.solution for p in longest]).input_ids) <= tokens
