"""The tasks math500 and gsm8k: protocol, prompts, answers, and where their problems come from."""

import csv
import gzip
import json
from functools import partial

import pytest

from rqat.errors import DataError
from rqat.registry import Registry

OWN = [
    {"problem": "What is half of three?", "answer": "\\frac{3}{2}", "subject": "Prealgebra"},
    {"problem": " Name the base-7 digits of 50. ", "answer": "101_7"},
]


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


def make(registry, name, **options):
    card = registry.card("task", name)
    return registry.make(card, registry.options(card, options))


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in OWN))
    return path


def test_protocol(registry):
    options = make(registry, "math500").options
    assert (options.max_new_tokens, options.temperature, options.top_p) == (32768, 0.6, 0.95)
    assert options.seeds == (42, 43, 44)


def test_prompts_ask_for_a_box(registry, own):
    problems = make(registry, "math500", data=str(own)).problems()
    ending = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert [row["prompt"] for row in problems] == [row["problem"].strip() + ending for row in OWN]
    assert [row["answer"] for row in problems] == ["\\frac{3}{2}", "101_7"]
    bare = make(registry, "math500", data=str(own), instruction="").problems()
    assert bare[0]["prompt"] == OWN[0]["problem"]


def test_a_folder_or_a_packed_file_will_do(registry, own, tmp_path):
    assert len(make(registry, "math500", data=str(tmp_path)).problems()) == 2
    packed = tmp_path / "other.jsonl.gz"
    packed.write_bytes(gzip.compress(own.read_bytes()))
    assert len(make(registry, "math500", data=str(packed)).problems()) == 2


def test_grading(registry):
    grade = partial(make(registry, "math500").grade, row={})
    assert grade("so \\boxed{1.5}", "\\frac{3}{2}") == "correct"
    assert grade("so \\boxed{101_8}", "101_7") == "wrong"
    assert grade("so 1.5", "\\frac{3}{2}") == "wrong"
    gsm8k = partial(make(registry, "gsm8k").grade, row={})
    assert gsm8k("\\boxed{1,200}", "1200") == "correct"
    assert gsm8k("she pays\n#### $1,200", "1200") == "correct"
    assert gsm8k("#### 18 dollars", "18") == "correct"
    assert gsm8k("#### **18**", "18") == "correct"
    assert gsm8k("she pays 1200", "1200") == "wrong"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": "a"}\n', r"test\.jsonl:1: a problem needs the fields 'problem' and 'answer'"),
        ('{"problem": "a", "answer": "b"}\n{\n', r"test\.jsonl:2: not JSON"),
        ("[1]\n", r"test\.jsonl:1: a problem needs"),
        ("\n", "holds no problems"),
        (
            '{"problem": "a", "answer": "b", "answer": "c"}',
            r"test\.jsonl:1: not JSON: the key 'answer' is written twice",
        ),
        ('{"problem": "", "answer": "b"}', r"test\.jsonl:1: the problem is empty"),
        ('{"problem": "a", "answer": " "}', r"test\.jsonl:1: the answer is empty"),
        *[
            (f'{{"problem": "a", "answer": {answer}}}', "needs the fields 'problem' and 'answer', a text and a text or")
            for answer in ("null", "true", '["b"]', '{"b": 1}', "NaN", "Infinity")
        ],
    ],
)
def test_bad_files(registry, own, content, message):
    own.write_text(content)
    with pytest.raises(DataError, match=message):
        make(registry, "math500", data=str(own)).problems()


def test_missing_files(registry, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="there is no such file"):
        make(registry, "math500", data=str(tmp_path / "none.jsonl")).problems()
    monkeypatch.setenv("RQAT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"'HuggingFaceH4/MATH-500' .* cannot be loaded") as caught:
        make(registry, "math500").problems()
    assert "--data" in caught.value.hint


def test_the_environment_names_the_data(registry, tmp_path, monkeypatch):
    (tmp_path / "math500").mkdir()
    (tmp_path / "math500" / "test.jsonl").write_text(json.dumps(OWN[0]) + "\n")
    monkeypatch.setenv("RQAT_DATA", str(tmp_path))
    assert len(make(registry, "math500").problems()) == 1


def test_aime_is_the_users_file_with_fields_in_capitals_or_not(registry, tmp_path, monkeypatch):
    monkeypatch.delenv("RQAT_DATA", raising=False)
    with pytest.raises(DataError, match="rqat brings none") as caught:
        make(registry, "aime120").problems()
    assert "aime120/test.jsonl" in caught.value.hint
    path = tmp_path / "aime.jsonl"
    path.write_text('{"Problem": "How many?", "Answer": 73}\n{"problem": "How few?", "answer": "007"}\n')
    made = make(registry, "aime120", data=str(path))
    assert [row["answer"] for row in made.problems()] == ["73", "007"]
    assert made.grade("\\boxed{073}", "73", {}) == "correct"
    assert made.grade("\\boxed{74}", "73", {}) == "wrong"


QUESTION = {"Question": "Which?", "Correct Answer": "this", **{f"Incorrect Answer {n}": f"that {n}" for n in (1, 2, 3)}}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_gpqa_shuffles_the_choices_of_the_users_file(registry, tmp_path, ending):
    path = tmp_path / f"diamond.{ending}"
    if ending == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(QUESTION))
            writer.writeheader()
            writer.writerows([QUESTION] * 40)
    else:
        path.write_text(f"{json.dumps(QUESTION)}\n" * 40)
    made = make(registry, "gpqa-diamond", data=str(path))
    problems = made.problems()
    assert problems == made.problems()
    assert {row["answer"] for row in problems} == set("ABCD")
    assert problems != make(registry, "gpqa-diamond", data=str(path), shuffle=1).problems()
    for row in problems[:5]:
        assert f"({row['answer']}) this" in row["prompt"]
        assert row["prompt"].count("that") == 3
        assert made.grade(f"so \\boxed{{{row['answer']}}}", row["answer"], row) == "correct"
        assert made.grade(f"The answer is ({row['answer']}).", row["answer"], row) == "correct"
        assert made.grade(f"\\boxed{{\\text{{({row['answer']})}} this}}", row["answer"], row) == "correct"
        other = "ABCD".replace(row["answer"], "")[0]
        assert made.grade(f"\\boxed{{{other}}}", row["answer"], row) == "wrong"
    path.write_text("a,b\n1,2\n" if ending == "csv" else '{"a": 1}\n')
    with pytest.raises(DataError, match="a question needs the fields 'Question', 'Correct Answer'"):
        make(registry, "gpqa-diamond", data=str(path)).problems()


def test_gpqa_without_a_file_says_so(registry, monkeypatch):
    monkeypatch.delenv("RQAT_DATA", raising=False)
    with pytest.raises(DataError, match="their authors ask not to show them"):
        make(registry, "gpqa-diamond").problems()
