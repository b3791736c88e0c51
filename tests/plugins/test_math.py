"""The tasks math500 and gsm8k: protocol, prompts, answers, and where their problems come from."""

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
    assert gsm8k("she pays 1200", "1200") == "wrong"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": "a"}\n', r"test\.jsonl:1: a problem needs the fields 'problem' and 'answer'"),
        ('{"problem": "a", "answer": "b"}\n{\n', r"test\.jsonl:2: not JSON"),
        ("[1]\n", r"test\.jsonl:1: a problem needs"),
        ("\n", "holds no problems"),
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
