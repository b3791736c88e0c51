"""Training rows that hold evaluation problems: word for word, or 13 words in a row; and nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rqat.contracts import Row
from rqat.overlap import WORDS, Problems, overlaps, overlaps_written, words
from rqat.plan import build_plan
from rqat.preflight import read_data
from rqat.recipe import load_recipe
from rqat.registry import Registry
from rqat.stage import Use

ASKED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
HENS = "Anna has 16 hens. Each hen lays 3 eggs a day, and she sells all but 7. How many eggs does she sell in a week?"
SHIP = "A ship leaves the harbour at 9 and sails 12 miles an hour for 5 hours. How far from the harbour is it then?"
SUM = "What is 12 + 30?"


@pytest.fixture
def problems() -> Problems:
    return Problems([f"{text}{ASKED}" for text in (HENS, SHIP, SUM)])


@pytest.mark.parametrize(
    ("prompt", "completion", "how"),
    [
        (HENS, "", "exact"),
        (HENS.upper().replace(".", " !"), "", "exact"),
        (f"{HENS}{ASKED}", "", "exact"),
        (SUM, "42", "exact"),
        ("What is 12 - 30?", "", ""),  # signs count
        ("What is 12 + 31?", "", ""),
        (f"Solve this: {HENS}", "", "shared"),
        ("Tell me a problem.", f"Here is one: {SHIP}", "shared"),
        (f"Bob has 9 ducks.{ASKED}", "He has 9.", ""),  # an instruction is no problem
        (" ".join(words(SHIP)[: WORDS - 1]), "", ""),
        (" ".join(words(SHIP)[1 : WORDS + 1]), "", "shared"),
    ],
)
def test_what_counts(problems: Problems, prompt: str, completion: str, how: str) -> None:
    assert problems.compare(words(prompt), words(f"{prompt}\n{completion}")) == how


def test_one_problem_is_no_boilerplate_of_itself() -> None:
    assert Problems([SUM]).compare(words(SUM), words(SUM)) == "exact"
    assert Problems([SUM, SUM]).compare(words(SUM), words(SUM)) == "exact"
    assert Problems([]).compare(words(SUM), words(SUM)) == ""


def test_the_quick_look_leaves_nothing_out() -> None:
    draw, verdicts = random.Random(0), {"shared": 0, "": 0}
    for _ in range(2000):
        problem, text = (draw.choices("abc", k=draw.randint(WORDS - 2, 3 * WORDS)) for _ in range(2))
        if draw.random() < 0.7:
            start, at = draw.randint(0, len(problem)), draw.randint(0, len(text))
            text[at:at] = problem[start : start + draw.randint(WORDS - 1, WORDS + 1)]
        held = {tuple(problem[at : at + WORDS]) for at in range(len(problem) - WORDS + 1)}
        there = any(tuple(text[at : at + WORDS]) in held for at in range(len(text) - WORDS + 1))
        verdict = Problems([" ".join(problem)]).compare(["z"], text)
        assert verdict == ("shared" if there else ""), (problem, text)
        verdicts[verdict] += 1
    assert min(verdicts.values()) > 200


def test_the_data_of_a_plan_is_compared(tmp_path: Path) -> None:
    registry = Registry.discover()
    (tmp_path / "math.jsonl").write_text(
        "".join(json.dumps({"problem": text, "answer": "1"}) + "\n" for text in (HENS, SHIP, SUM))
    )
    rows = [{"prompt": f"{number} and one?", "completion": f"{number + 1}"} for number in range(30)]
    rows[4] = {"messages": [{"role": "user", "content": HENS}, {"role": "assistant", "content": "x"}]}
    rows[9] = {"prompt": "A problem, please.", "completion": SHIP}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\nmodel: builtin:tiny-reasoner\nscheme: w2g32\nquantize: rtn\n"
        f"train:\n  - {{objective: sft, data: {{source: {tmp_path / 'rows.jsonl'}, validation: 0, shuffle: false}}, "
        "steps: 5, batch: 6}\n"
        f"evaluate: [{{task: math500, data: {tmp_path / 'math.jsonl'}}}]\n"
    )

    def told(*changes: str) -> list[str]:
        plan = build_plan(load_recipe(recipe, changes), registry)
        return [str(found) for found in read_data(plan, registry) if "overlap with problems" in found.text]

    [line] = told()
    assert line.startswith(
        f"warning: {recipe}:6 train.0.data: 2 of 30 rows overlap with problems of the task 'math500' (1 word for word, "
        f"1 by 13 words in a row; the first is {tmp_path / 'rows.jsonl'}:5)."
    )
    assert told("train.0.steps=1", "train.0.batch=4") == []
    assert told("evaluate=[arith]") == []
    assert told("train.0.data=arith", "evaluate=[arith]") == []  # whose problems are made by the same rules


def test_problems_are_not_read_where_no_training_is_left(tmp_path: Path) -> None:
    registry = Registry.discover()
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\nmodel: builtin:tiny-reasoner\nscheme: w2g32\nquantize: rtn\n"
        "train: [{objective: kd, data: arith, steps: 5, batch: 6}]\nevaluate: [arith]\n"
    )
    plan = build_plan(load_recipe(recipe, ()), registry)
    [training] = (step for step in plan.steps if "objective" in step.parts)
    made: list[str] = []

    def make(use: Use) -> Any:
        made.append(use.card.kind)
        return registry.make(use.card, use.options)

    assert [*overlaps(plan, make, {training.name})] == []
    assert made == []
    assert [*overlaps(plan, make, ())] == []
    assert made == ["task", "source"]


def test_rows_that_the_model_has_written_are_compared_when_they_are_there(tmp_path: Path) -> None:
    registry = Registry.discover()
    (tmp_path / "math.jsonl").write_text("".join(f'{{"problem": "{text}", "answer": "1"}}\n' for text in (HENS, SUM)))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\nmodel: builtin:tiny-reasoner\nscheme: w2g32\nquantize: rtn\n"
        "train:\n  - {objective: kd, data: {source: traces, prompts: {source: magpie, n: 3}}, steps: 5, batch: 6}\n"
        f"evaluate: [{{task: math500, data: {tmp_path / 'math.jsonl'}}}]\n"
    )
    plan = build_plan(load_recipe(recipe, ()), registry)
    assert [str(found) for found in read_data(plan, registry) if "overlap" in found.text] == []
    [training] = (step for step in plan.steps if "objective" in step.parts)

    class Written:
        """What the model remembered of a problem."""

        def rows(self, split: str, seed: int) -> Iterator[Row]:
            yield {"prompt": HENS, "completion": "6", "place": "traces.jsonl:1"}
            yield {"prompt": "Why?", "completion": "So."}

    def told(source: Any) -> list[str]:
        make = lambda use: registry.make(use.card, use.options)  # noqa: E731
        return [found.text for found in overlaps_written(plan, make, training, source)]

    [text] = told(Written())
    assert "1 of 2 rows overlap with problems of the task 'math500' (1 word for word, 0 by 13 words" in text
    assert "traces.jsonl:1" in text
