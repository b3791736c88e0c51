"""The source and the task `arith`: the card, the splits, the grader."""

from itertools import islice

import pytest

from rqat.errors import DataError, RecipeError
from rqat.registry import Registry


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


def make(registry, kind, **options):
    card = registry.card(kind, "arith")
    return registry.make(card, registry.options(card, options))


def test_rows_carry_a_solution_that_ends_in_its_answer(registry):
    for row in islice(make(registry, "source").rows("train", 0), 50):
        assert row["completion"].endswith(f"\\boxed{{{row['answer']}}}")


def test_rows_repeat_with_their_seed(registry):
    made = make(registry, "source", rows=40)
    first = list(made.rows("train", 3))
    assert len(first) == 40
    assert list(made.rows("train", 3)) == first
    assert list(made.rows("train", 4)) != first


def test_no_problem_of_the_task_is_in_another_split(registry):
    asked = {row["prompt"] for row in make(registry, "task", steps=[1, 2], problems=300).problems()}
    made = make(registry, "source", steps=[1, 2], rows=3000)
    for split in ("train", "validation"):
        assert not asked & {row["prompt"] for row in made.rows(split, 0)}
    with pytest.raises(DataError, match="test split of arith is for evaluation"):
        made.rows("test", 0)


def test_the_task_asks_the_same_problems_every_time(registry):
    problems = make(registry, "task").problems()
    assert len(problems) == 300
    assert problems == make(registry, "task").problems()
    assert make(registry, "task", problems=10).problems() == problems[:10]


def test_its_own_solutions_are_correct(registry):
    grade = make(registry, "task").grade
    for row in islice(make(registry, "source", steps=[8, 12]).rows("train", 0), 50):
        assert grade(row["completion"], row["answer"], row) == "correct"
        assert grade(row["completion"], row["answer"] + "1", row) == "wrong"
        assert grade(row["completion"].replace("boxed", ""), row["answer"], row) == "wrong"


@pytest.mark.parametrize("kind", ["source", "task"])
def test_steps_come_in_order(registry, kind):
    with pytest.raises(RecipeError, match="the smaller number comes first"):
        make(registry, kind, steps=[5, 2])
    with pytest.raises(RecipeError, match="steps"):
        make(registry, kind, steps=[0, 2])
