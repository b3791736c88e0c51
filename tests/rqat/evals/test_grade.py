"""Answer equality: a table of cases, the process that hangs, and properties over MATH-500 where the file is at hand."""

import gzip
import json
import random
import re
import threading
import time

import pytest

from rqat.evals import checking
from rqat.evals.checking import CHECKER
from rqat.evals.grade import ANY, boxed, final_answer, grade, judge, same_answer
from tests.rqat.evals import adversarial_cases as adversarial
from tests.rqat.evals.grading_cases import DIFFERENT, EQUAL


@pytest.mark.parametrize(("found", "answer"), EQUAL + adversarial.EQUAL)
def test_equal_answers_are_correct(found, answer):
    assert same_answer(found, answer) == "correct"


@pytest.mark.parametrize(("found", "answer"), DIFFERENT + adversarial.DIFFERENT)
def test_different_answers_are_not(found, answer):
    assert same_answer(found, answer) == "wrong"


@pytest.mark.parametrize(("text", "answer", "correct"), adversarial.TEXTS)
def test_a_number_in_a_sentence_is_not_taken_for_all_it_says(text, answer, correct):
    assert (judge(text, answer, forms=ANY).verdict == "correct") == correct


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{4} no, \boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{a} then \boxed{cut of", "a"),
        (r"I put it into \boxed{}. \boxed{6} as asked, in \boxed{}.", "6"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed 5", "5"),
        (r"\boxed5.", "5"),
        (r"\framebox{5}", "5"),
        (r"**\boxed{5}**", "5"),
        (r"$\boxed{-2}$ and $\boxed{1}$", "-2, 1"),
        (r"\boxed{1}, \boxed{2} or \boxed{3}", "1, 2, 3"),
        (r"\boxed{5}. I checked it: \boxed{5}", "5"),
        (r"first \boxed{4}, and then, after a while, \boxed{5}", "5"),
        (r"x = \boxed{1} and y = \boxed{2}", "1, 2"),
        (r"\boxed{1} papers and \boxed{2} bins", "1, 2"),
        (r"\boxed{3}, so the answer is \boxed{6}", "6"),
        (r"\boxed{3} is too small. And so \boxed{6}", "6"),
        (r"\boxed{", None),
        ("no box", None),
        ("", None),
    ],
)
def test_last_complete_box(text, content):
    assert boxed(text) == content


def test_only_text_after_thinking_counts():
    assert grade(r"<think>\boxed{5}</think> The answer is \boxed{6}", "6") == "correct"
    assert grade(r"<think>\boxed{5}</think> I do not know.", "5") == "wrong"
    assert grade(r"first <think>a</think> \boxed{5} then <think>\boxed{6}", "5") == "wrong"


def test_thinking_that_never_ends_has_no_answer():
    judged = judge(r"<think>cut off, but \boxed{5}", "5")
    assert (judged.verdict, judged.reason) == ("wrong", "thinking never ended")
    assert judge("I do not know.", "5").reason == "no answer"


def test_forms_are_tried_in_order():
    text = "3 + 4 = 7\n#### 1,007\nor 9?"
    assert final_answer(text) is None
    assert grade(text, "1007") == "wrong"
    assert final_answer(text, ("boxed", "hashes", "number")) == "1,007"
    assert grade(text, "1007", forms=("boxed", "hashes")) == "correct"
    assert final_answer(text, ("number",)) == "9"
    assert final_answer(text + r"\boxed{2}", ("boxed", "hashes", "number")) == "2"
    assert final_answer("nothing", ("boxed", "hashes", "number")) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 18.", "18"),
        ("... so we get\n\n**Answer:** 18", "18"),
        ("Final Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)"),
        ("Answer \\[ 9 \\]", "9"),
        ("first 3, then 4.\nTherefore, she earned $18.", "18"),
        (r"Hence the ordered pair is $(7, 6)$.", "(7,6)"),
        ("#### 18 dollars", "18"),
        ("#### **18**", "18"),
        (r"The answer is 3. No: \boxed{4}", "4"),
        (r"\boxed{3}, no. The final answer is 4.", "4"),
        ("18", "18"),
        (r"$\frac{1}{2}$", "0.5"),
        ("\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("that is 1,000.99 m²", "1000.99"),
        (r"\boxed{4}<|im_end|>The answer is 5", "4"),
    ],
)
def test_where_an_answer_may_stand_when_no_task_says_so(text, answer):
    assert judge(text, answer, forms=ANY).verdict == "correct", judge(text, answer, forms=ANY)


@pytest.mark.parametrize("text", ["first I add 3 and 4,\nwhich makes 7, then I", "7 apples\nare not enough", ""])
def test_a_text_without_an_answer_has_none(text):
    assert final_answer(text, ANY) is None


def test_the_right_answer_may_be_a_solution():
    assert grade(r"\boxed{18}", "She has 9 + 9 = <<9+9=18>>18.\n#### 18") == "correct"
    assert grade(r"\boxed{18}", r"which is $\boxed{18}$ and not 9") == "correct"


def test_no_right_answer_is_unverifiable():
    for answer in ("", " ", "$$"):
        assert judge(r"\boxed{5}", answer) == ("unverifiable", "the right answer is empty", "5")
        assert judge(answer, answer, forms=ANY).verdict != "correct"


def test_numbers_need_no_process(monkeypatch):
    monkeypatch.setattr(checking.Checker, "ask", lambda *question: pytest.fail("asked"))
    pairs = [("177", "177"), ("176", "177"), ("1,770", "1770"), ("1/2", "0.5"), ("3, 4", "4,3"), ("(1,2)", "(2,1)")]
    for found, answer in [*pairs, ("", "3"), ("5 km", "5 m"), ("odd", "even"), ("[1,2)", "[1,2]")]:
        assert same_answer(found, answer) in ("correct", "wrong")


def test_threads_share_the_process():
    found = {}
    work = [threading.Thread(target=lambda n=n: found.update({n: same_answer(f"x+{n}", f"{n}+x")})) for n in range(8)]
    for each in work:
        each.start()
    for each in work:
        each.join()
    assert found == dict.fromkeys(range(8), "correct")


@pytest.mark.parametrize(
    "bomb", ["9^{9^{9^{9}}}", "10^{10^{10}} + 1", r"(10^{9})! \cdot x", "9" * 5 + "^{" + "9" * 9 + "}-1"]
)
def test_a_bomb_is_stopped_in_time_and_the_next_answer_is_judged(bomb):
    same_answer("1/2", "2/4")
    start = time.monotonic()
    assert same_answer(bomb, r"\frac{7}{3}", timeout_s=1.0) in ("unverifiable", "wrong")
    assert time.monotonic() - start < 4
    assert same_answer("1/2", "2/4") == "correct"


def test_a_killed_process_is_unverifiable_and_restarted():
    assert same_answer("1/2", "2/4") == "correct"
    CHECKER._process.kill()
    CHECKER._process.wait()
    assert same_answer("1/2", "2/4") == "correct"


def test_a_late_answer_is_never_read_as_the_answer_to_the_next_question():
    for _ in range(3):
        same_answer("9^{9^{9^{9}}}", "x+1", timeout_s=0.05)
        assert same_answer("x+y", "y+x") == "correct"
        assert same_answer("x+y", "y-x") == "wrong"


def test_no_completion_raises():
    rng = random.Random(0)
    pieces = [
        "\\",
        "{",
        "}",
        "boxed{",
        "\\boxed{",
        "</think>",
        "frac",
        "1",
        "x",
        "$",
        "_8",
        "%",
        "^",
        ",",
        "\n",
        "π",
        "(",
        "]",
    ]
    for _ in range(60):
        text = "".join(rng.choice(pieces) for _ in range(30)) + "}"
        assert grade(text, r"\frac{1}{2}", timeout_s=2) in ("correct", "wrong", "unverifiable")


@pytest.fixture(scope="module")
def math500(data_root):
    path = data_root / "math500" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"needs {path.name} of MATH-500 under RQAT_DATA")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_reference_solution_of_math500_is_correct(math500):
    verdicts = [grade(row["solution"], row["answer"]) for row in math500]
    assert verdicts == ["correct"] * len(math500)


def test_answers_of_different_math500_problems_are_wrong(math500):
    rng = random.Random(0)
    answers = sorted({row["answer"] for row in math500})
    pairs = [rng.sample(answers, 2) for _ in range(200)]
    accepted = [pair for pair in pairs if same_answer(*pair) == "correct"]
    # The same value in two spellings.
    assert all(re.sub(r"[^0-9]", "", left) == re.sub(r"[^0-9]", "", right) for left, right in accepted), accepted


REWRITTEN = {
    "in dollars": lambda text: f"${text}$",
    "in a box": lambda text: rf"\boxed{{{text}}}",
    "larger fractions": lambda text: text.replace(r"\frac", r"\dfrac"),
    "larger brackets": lambda text: text if "left" in text else text.replace("(", r"\left(").replace(")", r"\right)"),
    "a full stop": lambda text: f"{text}.",
    "a minus of Unicode": lambda text: text.replace("-", "−"),
    "bold": lambda text: f"**{text}**",
}
CHANGED = {
    "a digit more": lambda text: re.sub(r"(\d+)", lambda found: found[1] + "1", text, count=1),
    "another number": lambda text: re.sub(r"(\d+)", lambda found: str(int(found[1]) + 1), text, count=1),
    "a summand": lambda text: f"{text}+x",
    "a second answer": lambda text: f"{text}, 12345",
}


def test_answers_of_math500_rewritten_and_changed(math500):
    """Each in one spelling of the other kind: all of them are in the log, with their rates."""
    for turn, answer in enumerate(sorted({row["answer"] for row in math500})):
        name, rewrite = list(REWRITTEN.items())[turn % len(REWRITTEN)]
        assert same_answer(rewrite(answer), answer) == "correct", (name, answer)
        name, change = list(CHANGED.items())[turn % len(CHANGED)]
        if change(answer) != answer and not re.search(r"frac\s*\d", answer):  # `\frac341` is three quarters of 1
            assert same_answer(change(answer), answer) == "wrong", (name, answer)


def test_answers_of_a_real_model(data_root):
    path = data_root / "traces" / "coder-1.5b-gsm8k.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"needs {path.name} under RQAT_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    judged = [(grade(row["completion"], row["answer"]) == "correct", row["ok"]) for row in rows]
    assert all(found == known for found, known in judged)


@pytest.mark.slow
def test_ten_thousand_strings_are_answered_in_time():
    """Random strings of what answers are made of; none may take longer than its time, and none may raise."""
    rng = random.Random(0)
    pieces = [
        r"\frac",
        r"\sqrt",
        r"\boxed{",
        "{",
        "}",
        "^",
        "_",
        "(",
        ")",
        "[",
        "]",
        r"\{",
        r"\}",
        ",",
        ";",
        "=",
        "<",
        "±",
    ]
    pieces += [
        "1",
        "2",
        "9" * 9,
        "x",
        "y",
        "0",
        ".",
        "%",
        "!",
        " and ",
        r"\text{",
        r"\pi",
        r"\infty",
        "&",
        r"\\",
        "|",
        "-",
        "π",
    ]
    pieces += [
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\cup",
        r"\in",
        "°",
        " km",
        "é",
        "\x00",
        "…",
        "𝟙",
        r"\sum",
        r"\int",
        "/",
    ]
    answers = [
        "18",
        r"\frac{1}{2}",
        "x+1",
        "(1,2)",
        r"\{1,2\}",
        r"\text{no}",
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        "y=2x",
    ]
    for turn in range(10_000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 14)))
        began = time.monotonic()
        assert same_answer(text, answers[turn % len(answers)], timeout_s=1.0) in ("correct", "wrong", "unverifiable")
        assert time.monotonic() - began < 30, text
