"""The sources of rqat_data: splits that never overlap, seeds that repeat, errors that name file and line."""

import gzip
import json
import re
from collections import Counter
from itertools import islice

import pytest

from rqat.errors import DataError, RecipeError, UnknownName
from rqat.registry import Registry

# Three rows of GSM8K: MIT licence, Copyright (c) 2021 OpenAI (github.com/openai/grade-school-math).
GSM8K = [
    {
        "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
        "How many clips did Natalia sell altogether in April and May?",
        "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
    },
    {
        "question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  "
        "How many bolts in total does it take?",
        "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\n"
        "So the total amount of fabric is 2+1=<<2+1=3>>3 bolts of fabric\n#### 3",
    },
    {
        "question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. "
        "How much did she earn?",
        "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\n"
        "Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    },
]


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


def source(registry, kind, **options):
    card = registry.card("source", kind)
    return registry.make(card, registry.options(card, options))


@pytest.fixture
def many(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(500)))
    return path


def test_splits_are_disjoint_and_complete(registry, many):
    made = source(registry, "jsonl", path=str(many), validation=0.2)
    train = [row["text"] for row in made.rows("train", 0)]
    validation = [row["text"] for row in made.rows("validation", 0)]
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 500
    assert 60 < len(validation) < 140
    with pytest.raises(DataError, match="has no split 'test'"):
        made.rows("test", 0)


def test_a_split_of_which_nothing_is_held_out_says_how_to(registry, many):
    with pytest.raises(DataError, match=r"The split 'validation' of .* is empty") as caught:
        list(source(registry, "jsonl", path=str(many), validation=0).rows("validation", 0))
    assert (
        caught.value.hint == "Hold rows out with a share, `validation: 0.1` beside the path, or name the split 'train'."
    )


def test_the_seed_decides_the_order(registry, many):
    made = source(registry, "jsonl", path=str(many))
    first = list(made.rows("train", 0))
    assert list(source(registry, "jsonl", path=str(many)).rows("train", 0)) == first
    other = list(made.rows("train", 1))
    assert other != first
    assert sorted(map(str, other)) == sorted(map(str, first))
    ordered = [row["text"] for row in source(registry, "jsonl", path=str(many), shuffle=False).rows("train", 5)]
    assert ordered == sorted(ordered, key=lambda text: int(text.split()[1]))


def test_solutions_of_one_problem_stay_in_one_split(registry, tmp_path):
    path = tmp_path / "solutions.jsonl"
    rows = [{"prompt": f"problem {i % 50}", "completion": f"way {i}", "answer": i % 50} for i in range(200)]
    path.write_text("\n".join(map(json.dumps, rows)))
    made = source(registry, "jsonl", path=str(path), validation=0.3)
    prompts = [{row["prompt"] for row in made.rows(split, 0)} for split in ("train", "validation")]
    assert not prompts[0] & prompts[1]
    assert next(made.rows("train", 0))["answer"].isdigit()


def test_problems_to_be_rewarded_for_need_no_solution(registry, tmp_path):
    file = tmp_path / "problems.jsonl"
    file.write_text('{"prompt": "1+1", "answer": 2}\n')
    rows = list(source(registry, "jsonl", path=str(file), validation=0).rows("train", 0))
    assert rows == [{"prompt": "1+1", "answer": "2", "place": f"{file}:1"}]


def test_a_row_knows_its_line_whatever_the_order(registry, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(number)}) + "\n" for number in range(1, 21)))
    rows = list(source(registry, "jsonl", path=str(path), validation=0).rows("train", 0))
    assert [row["prompt"] for row in rows] != sorted((row["prompt"] for row in rows), key=int)
    assert all(row["place"] == f"{path}:{row['prompt']}" for row in rows)


def test_jsonl_maps_fields_and_reads_gzip(registry, tmp_path):
    path = tmp_path / "traces.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"instruction": "a", "response": "b", "id": 1}) + "\n\n")
    fields = {"prompt": "instruction", "completion": "response"}
    made = source(registry, "jsonl", path=str(path), fields=fields, validation=0)
    assert list(made.rows("train", 0)) == [{"prompt": "a", "completion": "b", "place": f"{path}:1"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', r"bad\.jsonl:2: not JSON"),
        (b'{"text": "a"}\n[1]\n', r"bad\.jsonl:2: not an object"),
        (b'{"text": 5}\n', r"bad\.jsonl:1: the field 'text' is not a text but int"),
        (b'{"answer": "a"}\n', r"bad\.jsonl:1: neither 'text' nor 'prompt'\. Fields"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"bad\.jsonl:2: not UTF-8"),
        (b"\n\n", r"bad\.jsonl' is empty"),
        (b'{"text": "a"}\n{"text": "b", "text": "c"}\n', r"bad\.jsonl:2: not JSON: the key 'text' is written twice"),
        (b'[{"text": "a", "text": "b"}]', r"bad\.jsonl:1: not JSON: the key 'text' is written twice"),
        (b'{"prompt": "a", "answer": NaN}\n', r"bad\.jsonl:1: the field 'answer' is not a text but nan"),
        (b'{"prompt": "a", "answer": -Infinity}\n', "the field 'answer' is not a text but -inf"),
        (b'{"prompt": "a", "answer": true}\n', "the field 'answer' is not a text but bool"),
        (b'{"prompt": "a", "answer": ["b"]}\n', "the field 'answer' is not a text but list"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
    ],
)
def test_bad_lines_are_named(registry, tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(source(registry, "jsonl", path=str(path)).rows("train", 0))


ROW, OTHER = '{"text": "a"}', '{"text": "b\u2028c\\u0000"}'


@pytest.mark.parametrize(
    ("name", "data", "read"),
    [
        ("a.jsonl", f"{ROW}\r\n\r\n{OTHER}\r\n".encode(), ["a", "b\u2028c\0"]),
        ("a.jsonl", f"{ROW}\r{OTHER}".encode(), r"a\.jsonl:1: not JSON: Extra data"),
        ("a.jsonl", b"\xef\xbb\xbf" + f"\n \t\n{ROW}\n".encode(), ["a"]),
        ("a.jsonl", f"{ROW}\n".encode("utf-16"), r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl", '{"text": "\u00e4"}'.encode("latin-1"), r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl", json.dumps({"text": "a"}, indent=1).encode(), r"a\.jsonl:1: not JSON"),
        ("a.jsonl", b'{"text": "a",}', r"a\.jsonl:1: not JSON"),
        ("a.jsonl", json.dumps({"text": "long " * 100_000}).encode(), ["long " * 100_000]),
        ("a: b, c {d} #e.jsonl", ROW.encode(), ["a"]),
        ("a b\u00fc.json", f"[{ROW},]".encode(), ["a"]),
    ],
)
def test_files_as_they_come(registry, tmp_path, name, data, read):
    """Read as they are meant, or refused with the line."""
    (tmp_path / name).write_bytes(data)
    made = source(registry, "jsonl", path=str(tmp_path / name), validation=0, shuffle=False)
    if isinstance(read, str):
        with pytest.raises(DataError, match=read):
            made.rows("train", 0)
    else:
        assert [row["text"] for row in made.rows("train", 0)] == read


def test_missing_and_damaged_files(registry, tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        source(registry, "jsonl", path=str(tmp_path / "none.jsonl")).rows("train", 0)
    with pytest.raises(DataError, match="cannot be read"):
        source(registry, "text", path=str(tmp_path)).rows("train", 0)
    path = tmp_path / "cut.txt.gz"
    path.write_bytes(gzip.compress(b"text " * 1000)[:-9])
    with pytest.raises(DataError, match="not a whole gzip file"):
        source(registry, "text", path=str(path)).rows("train", 0)


def test_text_splits_documents(registry, tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"one\r\nstill one\r\n\r\ntwo\r\n \r\n\r\nx\r\n")
    options = {"path": str(path), "validation": 0, "shuffle": False}

    def texts(**more):
        return [row["text"] for row in source(registry, "text", **options, **more).rows("train", 0)]

    assert texts() == ["one\nstill one", "two", "x"]
    assert texts(min_chars=3) == ["one\nstill one", "two"]
    assert texts(split_at="line") == ["one", "still one", "two", "x"]
    assert len(texts(split_at="file")) == 1


def made(registry, tmp_path, records, kind="jsonl", **options):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = source(registry, kind, path=str(path), validation=0, shuffle=False, **options).rows("train", 0)
    return [{name: value for name, value in row.items() if name != "place"} for row in rows]


def said(*turns):
    """Messages from (role, content) pairs."""
    return [{"role": role, "content": content} for role, content in turns]


TALK = said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "2+2?"), ("assistant", "4"))


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"messages": TALK}, {"messages": TALK}),
        ({"messages": TALK[1:], "system": "Be brief."}, {"messages": TALK}),
        ({"messages": TALK[1:], "system": None}, {"messages": TALK[1:]}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, {"messages": TALK[1:2]}),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "id": 3},
            {"messages": TALK[1:3]},
        ),
        ({"prompt": TALK[1:2], "completion": TALK[2:3]}, {"messages": TALK[1:3]}),  # TRL's
        ({"prompt": TALK[:4], "answer": 4}, {"messages": TALK[:4], "answer": "4"}),
        ({"prompt": "Hi", "messages": TALK[1:3]}, {"messages": TALK[1:3]}),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, {"prompt": "Add.\n\n1 2", "completion": "3"}),
        ({"instruction": "Add.", "input": "", "output": "3"}, {"prompt": "Add.", "completion": "3"}),
        ({"prompt": "a", "completion": "b", "system": "s"}, {"prompt": "a", "completion": "b", "system": "s"}),
        # What was a row before stays that row.
        ({"prompt": "a", "completion": "b", "messages": TALK}, {"prompt": "a", "completion": "b"}),
        ({"prompt": "a", "answer": 2, "instruction": "x", "output": "y"}, {"prompt": "a", "answer": "2"}),
        ({"text": "a", "conversations": []}, {"text": "a"}),
    ],
)
def test_the_usual_shapes_are_known(registry, tmp_path, record, row):
    assert made(registry, tmp_path, [record]) == [row]


def test_fields_may_name_a_conversation(registry, tmp_path):
    record = {"talk": {"turns": TALK}, "gold": 4, "prompt": "other"}
    fields = {"messages": "talk.turns", "answer": "gold"}
    assert made(registry, tmp_path, [record], fields=fields) == [{"messages": TALK, "answer": "4"}]


def test_every_turn_of_the_assistant_can_be_a_row(registry, tmp_path):
    rows = made(registry, tmp_path, [{"messages": TALK}, {"messages": TALK[:2]}], turns="all")
    assert [row["messages"] for row in rows] == [TALK[:3], TALK, TALK[:2]]


def test_a_conversation_stays_in_one_split(registry, tmp_path):
    path = tmp_path / "talks.jsonl"
    records = [{"messages": [*said(("user", f"question {i % 40}")), *TALK[2:]]} for i in range(200)]
    path.write_text("\n".join(map(json.dumps, records)))
    read = source(registry, "jsonl", path=str(path), validation=0.3, turns="all")
    asked = [{row["messages"][0]["content"] for row in read.rows(split, 0)} for split in ("train", "validation")]
    assert all(asked)
    assert not asked[0] & asked[1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "'messages' is not a list of turns but empty"),
        ({"messages": ["Hi"]}, "turn 1 of 'messages' is str"),
        (
            {"messages": [*TALK, {"role": "tool", "content": "x"}]},
            "turn 6 of 'messages' is by 'tool'; read are turns by",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "turn 1 of 'messages': its content is null"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "turn 1 of 'messages': its content is parts that are no text",
        ),
        (
            {"messages": [{"role": "user", "content": "a\ud800"}]},
            "turn 1 of 'messages': character 2 of its content is half",
        ),
        ({"messages": said(("assistant", "Hello."))}, "no turn of 'messages' is the user's"),
        ({"prompt": None, "completion": "x"}, "the field 'prompt' is null"),
    ],
)
def test_conversations_that_cannot_be_used_are_told_with_their_line(registry, tmp_path, record, message):
    with pytest.raises(DataError, match=rf"records\.jsonl:2: .*{re.escape(message)}"):
        made(registry, tmp_path, [{"text": "a"}, record])


def test_a_list_of_objects_is_read_with_its_lines(registry, tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text('[\n  {"text": "a"},\n  {"text":\n "b"}, {"text": "c"}\n]\n')
    rows = list(source(registry, "jsonl", path=str(path), validation=0, shuffle=False).rows("train", 0))
    assert [(row["text"], row["place"]) for row in rows] == [("a", f"{path}:2"), ("b", f"{path}:3"), ("c", f"{path}:4")]
    for written, message in (
        ('[{"text": "a"}\n {"text": "b"}]', r":2: not JSON: a comma or the list's end is missing"),
        ('[{"text": "a"},\n{"text": ', r":2: not JSON: Expecting value at column"),
        ('[{"text": "a"},\n', r":2: not JSON: Expecting value"),
        ("[]", "is empty"),
        ('[\n{"text": "a"}\n]\n[{"text": "lost"}]', r":3: the list ends here, and more follows"),
    ):
        path.write_text(written)
        with pytest.raises(DataError, match=message):
            source(registry, "jsonl", path=str(path)).rows("train", 0)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".parquet"])
def test_tables_hold_texts_as_they_are_written(registry, tmp_path, ending):
    import datasets

    record = {"prompt": "a, b\nc\td", "completion": '"007"', "answer": "N/A"}
    path = tmp_path / f"table{ending}"
    frame = datasets.Dataset.from_list([record, record | {"answer": "007"}])
    if ending == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if ending == ".tsv" else ",", index=False)
    if ending.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    rows = list(source(registry, "table", path=str(path), validation=0, shuffle=False).rows("train", 0))
    assert rows[0] == record | {"place": f"{path}, row 1"}
    assert rows[1]["answer"] == "007"
    fields = {"prompt": "answer", "completion": "prompt"}
    read = source(registry, "table", path=str(path), validation=0, shuffle=False, fields=fields)
    assert next(read.rows("train", 0))["prompt"] == "N/A"


def test_parquet_holds_conversations(registry, tmp_path):
    import datasets

    path = tmp_path / "talks.parquet"
    datasets.Dataset.from_list([{"messages": TALK, "answer": 4}]).to_parquet(path)
    [row] = source(registry, "table", path=str(path), validation=0).rows("train", 0)
    assert (row["messages"], row["answer"]) == (TALK, "4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt,completion\na,b\nc,d,e\n", "is no .csv table: .*Expected 2 fields in line 3, saw 3"),
        ("a.csv", b"prompt,prompt\na,b\n", r"a\.csv:1: two columns are called 'prompt'"),
        ("a.csv", b"prompt\n\xe9\n", r"a\.csv:2: not UTF-8"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"prompt,completion\n", "is empty"),
        ("a.csv", b"question\nx\n", r"a\.csv, row 1: neither 'text' nor 'prompt'\. Fields here: question"),
        ("a.parquet", b"x", "is no .parquet table"),
        ("a.jsonl", b"{}", "is no table"),
    ],
)
def test_what_is_no_table_is_told(registry, tmp_path, capfd, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(source(registry, "table", path=str(path)).rows("train", 0))
    assert capfd.readouterr().err == ""


def test_a_table_is_no_json(registry, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text\na\n")
    with pytest.raises(DataError, match=r"rows\.csv' is a \.csv file, which has no JSON\. Name it as the source"):
        source(registry, "jsonl", path=str(path)).rows("train", 0)
    with pytest.raises(DataError, match="there is no such file"):
        source(registry, "table", path=str(tmp_path / "none.parquet")).rows("train", 0)


def test_a_part_of_a_mixture_may_be_a_file(registry, many):
    alone = source(registry, "jsonl", path=str(many))
    assert list(source(registry, "mix", parts=[str(many)]).rows("train", 4)) == list(alone.rows("train", 4))


@pytest.fixture
def gsm8k(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    (tmp_path / "test.jsonl").write_text(json.dumps(GSM8K[0]) + "\n")
    return tmp_path


def test_gsm8k_rows_end_in_a_box(registry, gsm8k):
    rows = list(source(registry, "gsm8k", path=str(gsm8k), validation=0, shuffle=False).rows("train", 0))
    assert [row["answer"] for row in rows] == ["72", "3", "10"]
    assert rows[1]["completion"] == (
        "It takes 2/2=1 bolt of white fiber\nSo the total amount of fabric is 2+1=3 bolts of fabric\n\\boxed{3}"
    )
    assert all("<<" not in row["completion"] and "####" not in row["completion"] for row in rows)
    task = registry.card("task", "gsm8k")
    problems = registry.make(task, registry.options(task, {"data": str(gsm8k / "test.jsonl")})).problems()
    assert problems[0]["prompt"] == rows[0]["prompt"]


def test_gsm8k_never_gives_its_test_split(registry, gsm8k):
    with pytest.raises(DataError, match="test split of GSM8K is for evaluation"):
        source(registry, "gsm8k", path=str(gsm8k)).rows("test", 0)
    with pytest.raises(DataError, match="looks like the test split"):
        source(registry, "gsm8k", path=str(gsm8k / "test.jsonl")).rows("train", 0)


def test_general_prompts_are_to_look_at_only(registry):
    rows = list(source(registry, "general").rows("validation", 0))
    assert len(rows) == len({row["prompt"] for row in rows}) == 64
    assert rows[0] == {"prompt": "Explain to a ten-year-old why the sky is blue.", "place": "general:1"}
    assert list(source(registry, "general").rows("validation", 7)) == rows
    with pytest.raises(DataError, match=r"no split 'train'.* not for calibration or training"):
        source(registry, "general").rows("train", 0)


def test_gsm8k_errors(registry, gsm8k, monkeypatch):
    (gsm8k / "train.jsonl").write_text('{"question": "a", "answer": "no mark"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: the answer has no '#### <number>'"):
        source(registry, "gsm8k", path=str(gsm8k)).rows("train", 0)
    (gsm8k / "train.jsonl").write_text('{"problem": "a"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1: not a problem of GSM8K"):
        source(registry, "gsm8k", path=str(gsm8k)).rows("train", 0)
    (gsm8k / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"holds no train\.jsonl"):
        source(registry, "gsm8k", path=str(gsm8k)).rows("train", 0)


def test_without_file_and_network_it_says_what_is_missing(registry, monkeypatch):
    monkeypatch.delenv("RQAT_DATA", raising=False)
    with pytest.raises(DataError, match=r"'openai/gsm8k' .* cannot be loaded") as caught:
        source(registry, "gsm8k").rows("train", 0)
    assert "RQAT_DATA" in caught.value.hint


def test_hub_knows_only_the_splits_it_was_told(registry):
    made = source(registry, "hub", name="acme/none")
    with pytest.raises(DataError, match="has no split 'validation' here"):
        made.rows("validation", 0)
    with pytest.raises(DataError, match=r"'acme/none' .* cannot be loaded"):
        made.rows("train", 0)
    same = source(registry, "hub", name="acme/none", splits={"train": "train", "validation": "train"})
    with pytest.raises(DataError, match="two splits name the same data"):
        same.rows("train", 0)


def test_hub_reads_a_data_set(registry, monkeypatch):
    import datasets

    rows = [{"problem": f"p{i}", "solution": "s", "n": i} for i in range(5)]
    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    fields = {"prompt": "problem", "completion": "solution", "answer": "n"}
    made = source(registry, "hub", name="acme/set", config="main", revision="abc", fields=fields)
    found = list(made.rows("train", 0))
    assert asked == [("acme/set", "main", "train", "abc")]
    assert sorted(row["answer"] for row in found) == list("01234")


def mixture(registry, tmp_path, **options):
    for name, count in (("a", 30), ("b", 100)):
        rows = "".join(json.dumps({"text": f"{name}{i}"}) + "\n" for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    parts = [
        {"source": "jsonl", "path": str(tmp_path / f"{name}.jsonl"), "weight": weight, "validation": 0}
        for name, weight in (("a", 1), ("b", 3))
    ]
    return source(registry, "mix", parts=parts, **options)


def test_every_prefix_of_a_mixture_holds_its_weights(registry, tmp_path):
    texts = [row["text"] for row in mixture(registry, tmp_path).rows("train", 0)]
    for length in range(1, len(texts) + 1):
        share = sum(text[0] == "a" for text in texts[:length])
        assert abs(share - length / 4) <= 1
    assert 118 <= len(texts) <= 124
    assert len(set(texts)) == len(texts)


def test_a_cycling_mixture_reads_every_part_at_least_once(registry, tmp_path):
    texts = [row["text"] for row in mixture(registry, tmp_path, exhausted="cycle").rows("train", 0)]
    assert {text for text in texts if text[0] == "b"} == {f"b{i}" for i in range(100)}
    counts = Counter(text for text in texts if text[0] == "a")
    assert set(counts.values()) == {1, 2}


def test_a_mixture_of_one_part_is_that_part(registry, many):
    alone = source(registry, "jsonl", path=str(many))
    mixed = source(registry, "mix", parts=[{"source": "jsonl", "path": str(many), "weight": 0.3}])
    assert list(mixed.rows("train", 4)) == list(alone.rows("train", 4))


def test_mixtures_can_be_nested_and_hold_endless_sources(registry, many):
    inner = {"source": "mix", "parts": [{"source": "arith"}, {"source": "jsonl", "path": str(many)}]}
    made = source(registry, "mix", parts=[inner, {"source": "arith", "steps": [1, 1]}])
    rows = list(islice(made.rows("train", 0), 8))
    assert sum("prompt" in row for row in rows) == 6


def test_mixture_errors(registry):
    with pytest.raises(RecipeError):
        source(registry, "mix", parts=[])
    with pytest.raises((RecipeError, UnknownName), match="nowhere"):
        source(registry, "mix", parts=[{"source": "nowhere"}])
    with pytest.raises(DataError, match="the weight of 'arith' is 0"):
        source(registry, "mix", parts=[{"source": "arith", "weight": 0}])
