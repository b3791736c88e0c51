"""Rewards as TRL calls them: graded once, on the whole row, and every score a finite number."""

from __future__ import annotations

from typing import Any

import pytest

from rqat.contracts import Completion, Options, Reward, Row, Task, TaskOptions, Verdict
from rqat.errors import RqatError
from rqat.train.rewards import Judge, reward_function
from tests.tiny import tiny_tokenizer

ROWS: list[Row] = [
    {"prompt": "2+2=", "answer": "4", "place": "a.jsonl:3"},
    {"prompt": "2+3=", "answer": "5", "place": "a.jsonl:9"},
]
TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id


class Equal(Task):
    """Correct is the answer itself; `?` cannot be judged. Notes what it is asked."""

    def __init__(self) -> None:
        super().__init__(TaskOptions())
        self.asked: list[tuple[str, str, Row]] = []

    def problems(self) -> list[Row]:
        return []

    def grade(self, completion: str, answer: str, row: Row) -> Verdict:
        self.asked.append((completion, answer, row))
        return "unverifiable" if completion == "?" else "correct" if completion == answer else "wrong"


class Noted(Reward):
    """Scores by `value(completion, row, verdict)`."""

    def __init__(self, value: Any) -> None:
        super().__init__(Options())
        self.value = value

    def score(self, completion: Completion, row: Row, verdict: Verdict | None) -> float:
        score: float = self.value(completion, row, verdict)
        return score


def ids(text: str, end: bool = True) -> list[int]:
    return TOKENIZER(text)["input_ids"] + [END] * end


def judge(task: Task) -> Judge:
    return Judge(task, ROWS, TOKENIZER, [END], 40)


def test_every_completion_is_graded_once_for_all_rewards_on_its_whole_row() -> None:
    task, logged = Equal(), list[tuple[str, float]]()
    shared = judge(task)
    functions = [
        reward_function("correct", Noted(lambda completion, row, verdict: verdict == "correct"), shared),
        reward_function("place", Noted(lambda completion, row, verdict: len(row["place"])), shared),
    ]
    asked: dict[str, Any] = {
        "prompts": ["2+2=", "2+2=", "2+3=", "2+3="], "completions": [""] * 4, "row": [0, 0, 1, 1],
        "prompt_ids": [[5]] * 4,
        "completion_ids": [ids("4"), ids("7" * 36), ids("?"), ids("5")], "answer": ["4", "4", "5", "5"],
        "log_metric": lambda name, value: logged.append((name, value)),
    }  # fmt: skip
    assert [function(**asked) for function in functions] == [[1.0, 0.0, 0.0, 1.0], [9.0] * 4]
    assert [function.__name__ for function in functions] == ["correct", "place"]
    assert [(text, answer) for text, answer, _ in task.asked] == [("4", "4"), ("7" * 36, "4"), ("?", "5"), ("5", "5")]
    assert [row for *_, row in task.asked] == [ROWS[0], ROWS[0], ROWS[1], ROWS[1]]
    assert logged == [("unverifiable", 0.25), ("repetition", 0.0)]
    functions[0](**asked | {"row": [0, 0, 1, 0]})
    assert len(task.asked) == 8


def test_a_reward_sees_how_a_completion_ended() -> None:
    seen: list[Completion] = []
    look = reward_function("look", Noted(lambda completion, *_: seen.append(completion) or 0), judge(Equal()))
    look(
        completion_ids=[ids("12"), ids("7" * 40, end=False), [], ids("<think>a")],
        row=[0, 0, 1, 1],
        prompt_ids=[[5]] * 4,
    )
    ended, cut, empty, thinking = seen
    assert (ended.text, ended.tokens, ended.ended, ended.limit) == ("12", tuple(ids("12")), True, 40)
    assert (cut.ended, cut.truncated, cut.looping, cut.unclosed_think) == (False, True, True, False)
    assert (empty.text, empty.ended) == ("", False)
    assert thinking.unclosed_think


def test_thinking_that_the_prompt_opened_has_to_be_closed() -> None:
    seen: list[Completion] = []
    look = reward_function("look", Noted(lambda completion, *_: seen.append(completion) or 0), judge(Equal()))
    look(completion_ids=[ids("12"), ids("a</think>12")], row=[0, 0], prompt_ids=[ids("2+2=<think>", end=False)] * 2)
    assert [completion.unclosed_think for completion in seen] == [True, False]


@pytest.mark.parametrize("score", [float("nan"), float("-inf"), None, "much"])
def test_a_score_that_is_no_finite_number_is_one_clear_error(score: Any) -> None:
    function = reward_function("acme-brief", Noted(lambda *_: score), judge(Equal()))
    with pytest.raises(
        RqatError, match=r"the reward 'acme-brief' gave .* a completion of a.jsonl:9 \(2 tokens"
    ) as info:
        function(completion_ids=[ids("4")], row=[1], prompt_ids=[[5]])
    assert "finite number" in info.value.hint
