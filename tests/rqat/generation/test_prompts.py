"""One tokenization: whoever asks a model, asks the same tokens; a template that loses a problem is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

import rqat
from rqat.cli.app import build
from rqat.contracts import Row
from rqat.errors import DataError, ModelError
from rqat.evals.harness import run_task
from rqat.generation.complete import complete_rows, completion_from
from rqat.generation.prompts import (
    Prompt,
    encode_examples,
    encode_openings,
    encode_prompts,
    prompt_hash,
    token_of_end,
)
from rqat.generation.transformers_writer import TransformersWriter
from rqat.keys import ModelKeys
from rqat.model.load import load_model
from rqat.stages.calibrate.run import tokenize
from rqat.stages.gate import run as gate
from rqat.stages.train import run as train
from rqat.train.data import prepare_rows
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.training import Sums, train_step, write_start

PLAIN = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
ROLES = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] | trim }};{% endfor %}a:"
THINKING = (
    "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>\n{% endif %}"
)
DATED = (
    "{% for m in messages %}[{{ m['content'] }}]{% endfor %}\nToday Date: "
    "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y (%Y-%m-%d), %B') }}{% endif %}>"
)
PARTS = "{% for m in messages %}{% for p in m['content'] %}{{ p.text }}{% endfor %}{% endfor %}>"


def ending(start: bool = False) -> Any:
    """A tokenizer that ends every text with its end token, as some do, and may begin it with another token."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A <eos>" if start else "$A <eos>", special_tokens=[("<pad>", 0), ("<eos>", 1)]
    )
    assert tokenizer("1")["input_ids"][-1] == tokenizer.eos_token_id
    return tokenizer


def ending_otherwise() -> Any:
    """A tokenizer that ends every text with a token of its own, which is not its end token, and with the end token."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<pad> $A <unk> <eos> <unk>", special_tokens=[("<pad>", 0), ("<eos>", 1), ("<unk>", 2)]
    )
    return tokenizer


def templated(template: Any, tokenizer: Any = None) -> Any:
    tokenizer = tokenizer or tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def padded_with(token: str | None) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = token
    return tokenizer


KINDS = {
    "plain": tiny_tokenizer,
    "ending": ending,
    "starting and ending": lambda: ending(start=True),
    "ending otherwise": ending_otherwise,
    "template": lambda: templated(PLAIN),
    "template, ending": lambda: templated(PLAIN, ending(start=True)),
    "template that opens thinking": lambda: templated(THINKING),
    "template that adds a system prompt": lambda: templated("be brief;" + ROLES),
    "template that writes the date": lambda: templated(DATED),
    "several templates": lambda: templated({"default": PLAIN, "tool_use": PARTS}),
    "no pad token": lambda: padded_with(None),
    "pad is the end token": lambda: padded_with("<eos>"),
    "pad is a real token": lambda: padded_with("1"),
}

FOREIGN = {
    "eos_token_id": [1, 40],
    "temperature": 5.0,
    "top_k": 1,
    "min_p": 0.9,
    "repetition_penalty": 9.0,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 3,
    "max_length": 3,
    "suppress_tokens": list(range(3, 90)),
    "forced_eos_token_id": 5,
    "num_beams": 2,
}
"""A generation_config.json of which only the end tokens may count."""


# --------------------------------------------------------------------------------------------- the same for everybody


class Asked:
    """Remembers what a writer, or transformers' `generate`, was asked, and by which rules tokens were chosen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: set[tuple[int, ...]] = set()
        self.rules: set[tuple[Any, ...]] = set()
        kind = type(tiny_model())
        processors = kind._get_logits_processor

        def chosen(model: Any, generation_config: Any, *arguments: Any, **more: Any) -> Any:
            found = processors(model, generation_config, *arguments, **more)
            rules = tuple(type(one).__name__ for one in found)
            ends = frozenset(generation_config.eos_token_id or ())
            self.rules.add((generation_config.do_sample, generation_config.num_beams, ends, rules))
            return found

        monkeypatch.setattr(kind, "_get_logits_processor", chosen)
        write = TransformersWriter.write

        def noted(writer: Any, prompts: Any, *arguments: Any, **more: Any) -> Any:
            self.prompts |= set(map(tuple, prompts))
            return write(writer, prompts, *arguments, **more)

        monkeypatch.setattr(TransformersWriter, "write", noted)

    def taken(self) -> set[tuple[int, ...]]:
        found, self.prompts = self.prompts, set()
        return found


class Problems(rqat.Task):
    """The rows of `Sums` as problems."""

    def problems(self) -> list[Row]:
        return list(Sums(3).rows("train", 0))

    def grade(self, completion: str, answer: str, row: Row) -> rqat.Verdict:
        return "correct" if len(completion) % 2 else "wrong"


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_gate_rollouts_and_generate_ask_and_sample_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `FOREIGN` as every checkpoint's generation settings."""
    tokenizer = KINDS[kind]()
    rows = list(Sums(3).rows("train", 0))
    expected = {prompt.tokens for prompt in encode_prompts(rows, tokenizer)}
    assert not any(ids[-1] in tokenizer.all_special_ids for ids in expected)
    asked = Asked(monkeypatch)

    write_start(tmp_path)
    for folder in (tmp_path / "run" / "01-quantize-rtn", tmp_path / "model"):
        tokenizer.save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps(FOREIGN))
    model, read = load_model(ModelKeys(path=str(tmp_path / "model")))
    run_task(Problems(rqat.TaskOptions(max_new_tokens=2, temperature=1.0)), "sums", model, read)
    assert asked.taken() == expected
    keys: dict[str, Any] = {"max_tokens": 80, "max_completion_tokens": 4, "batch": 4, "generations": 2, "steps": 1}
    gate.run(*train_step(tmp_path, "grpo", source=Sums(3), stage="gate", gate={"prompts": 3, "samples": 2}, **keys))
    assert asked.taken() == expected

    generate = type(tiny_model()).generate
    rolled: set[tuple[int, ...]] = set()

    def noted(model: Any, *arguments: Any, **more: Any) -> Any:
        pairs = zip(more["input_ids"], more["attention_mask"], strict=True)
        rolled.update(tuple(ids[mask.bool()].tolist()) for ids, mask in pairs)
        return generate(model, *arguments, **more)

    monkeypatch.setattr(type(tiny_model()), "generate", noted)
    train.run(*train_step(tmp_path, "grpo", source=Sums(3), **keys))
    assert asked.taken() <= expected  # the comparison of sampler and trainer
    assert rolled
    assert rolled <= expected

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for row in rows:
        done = CliRunner().invoke(
            build(),
            ["generate", str(tmp_path / "model"), row["prompt"], "--max-new-tokens", "2", "--temperature", "1"],
        )
        assert done.exit_code == 0, done.output
    assert asked.taken() == expected
    # Nothing of the checkpoint but its end tokens, and the same for all.
    assert asked.rules == {(True, 1, frozenset({1, 40}), ())}


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_calibration_put_completions_behind_the_same_prompts(kind: str) -> None:
    tokenizer = KINDS[kind]()
    row: Row = {"prompt": "1+2=", "completion": "3", "answer": "3"}
    [prompt] = encode_prompts([row], tokenizer)
    whole = [*prompt.tokens, *tokenizer("3", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert tokenize(row, tokenizer) == whole
    found = prepare_rows([row], tokenizer, steps=1, batch=1, max_tokens=99, seed=0).rows[0]
    assert found["input_ids"] == whole
    assert found["prompt_tokens"] == len(prompt.tokens)


def test_a_tokenizer_that_would_cut_and_fill_texts_does_neither() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 3
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=16)
    row: Row = {"prompt": "12+34=", "completion": "46 or so"}
    assert encode_examples([row], tokenizer) == encode_examples([row], tiny_tokenizer())


# -------------------------------------------------------------------------------------------------------------- rows


def test_a_date_in_a_template_is_the_same_on_every_day() -> None:
    found = encode_prompts([{"prompt": "hi"}], templated(DATED))[0].text
    assert found == "[hi]Today Date: 26 Jul 2024 (2024-07-26), July>"
    named = templated("\n" + DATED.replace("{% if", "{{ date_string }}{% if"))
    row: Row = {"prompt": "hi", "template": {"date_string": "1 May"}}
    assert encode_prompts([row], named)[0].text.startswith("\n[hi]Today Date: 1 May")


def test_text_that_is_no_text_is_told_with_its_place() -> None:
    rows: list[Row] = [{"prompt": "good", "completion": "good"}, {"prompt": "ab\ud800c", "completion": "x"}]
    with pytest.raises(DataError, match=r"row 2: character 3 is half of a pair \(\\ud800\)"):
        encode_prompts(rows, tiny_tokenizer())
    with pytest.raises(DataError, match=r"row 2: character 1 is half of a pair \(\\udfff\)"):
        encode_examples([rows[0], {"text": "\udfff"}], tiny_tokenizer())


def test_chat_template_is_used_when_there_is_one() -> None:
    tokenizer = tiny_tokenizer()
    rows: list[Row] = [{"prompt": "hi"}]
    plain = encode_prompts(rows, tokenizer)
    assert encode_prompts(rows, tokenizer, "no") == plain
    with pytest.raises(DataError, match="has none"):
        encode_prompts(rows, tokenizer, "yes")
    tokenizer.chat_template = PLAIN
    assert encode_prompts(rows, tokenizer)[0].text == "[hi]>"
    assert encode_prompts(rows, tokenizer, "no") == plain
    assert prompt_hash(encode_prompts(rows, tokenizer)) != prompt_hash(plain)


def test_messages_a_system_prompt_and_settings_of_the_template() -> None:
    tokenizer = templated(ROLES)
    conversation = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2 "},
        {"role": "assistant", "content": "4"},
    ]
    rows: Any = [{"messages": conversation, "system": "be brief"}, {"prompt": "3", "system": "add", "completion": "5"}]
    texts = [(prompt.text, tokenizer.decode(after)) for prompt, after in encode_examples(rows, tokenizer)]
    assert texts == [("s:be brief;u:1+1;a:2;u:2+2;a:", "4<eos>"), ("s:add;u:3;a:", "5<eos>")]

    tokenizer = templated(THINKING)
    row: Row = {"prompt": "hi", "completion": "<think>\nhm</think>yo"}
    off: Row = {**row, "template": {"enable_thinking": False}}
    found = [(prompt.text, tokenizer.decode(after)) for prompt, after in encode_examples([row, off], tokenizer)]
    assert found == [("[hi]<think>\n", "hm</think>yo<eos>"), ("[hi]<think></think>", "<think>\nhm</think>yo<eos>")]


def test_rows_of_messages_are_trained_on() -> None:
    tokenizer = templated(ROLES)
    messages: Any = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    rows: list[Row] = [{"messages": messages, "answer": "2"}]
    row = prepare_rows(rows, tokenizer, steps=1, batch=1, max_tokens=99, seed=0).rows[0]
    assert tokenizer.decode(row["input_ids"]) == "u:1+1;a:2<eos>"
    asked = prepare_rows(rows, tokenizer, steps=1, batch=1, max_tokens=99, seed=0, writes=True).rows[0]
    assert asked["prompt"] == messages[:1]
    assert tokenizer.decode(asked["prompt_ids"]) == "u:1+1;a:"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": ""}, "row 2 has an empty prompt"),
        ({"prompt": " \n"}, "row 2 has an empty prompt"),
        ({"system": "hm"}, "row 2 has an empty prompt"),
        ({"prompt": "a", "system": "b"}, "row 2 has a system prompt, which takes a chat template"),
        ({"prompt": "a", "template": {"x": 1}}, "row 2 has settings of the chat template"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "row 2 has several messages"),
        ({"messages": [{"role": "user", "content": None}]}, "row 2: the content of a message is NoneType"),
    ],
)
def test_rows_that_cannot_be_asked(row: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        encode_prompts([{"prompt": "a"}, row], tiny_tokenizer())


@pytest.mark.parametrize(
    ("template", "kind", "says"),
    [
        ("{{ raise_exception('no such role') }}", DataError, "row 1: the chat template refuses it: no such role"),
        ("{% for m in messages %}{{ m.content }}", ModelError, "The chat template is not valid: line 1: "),
        ("{{ messages[0].content.text.more }}", ModelError, "row 1: the chat template fails: .*no attribute 'text'"),
        (PARTS, DataError, "row 1: the chat template loses the user's text and writes '>'"),
        ("", DataError, None),
        ("{# nothing #}", DataError, "row 1: the chat template loses the user's text and writes ''"),
        ({"tools": PLAIN, "rag": PLAIN}, ModelError, "chat templates named rag, tools and none named default"),
    ],
)
def test_templates_that_cannot_be_used(template: Any, kind: type[Exception], says: str | None) -> None:
    tokenizer = templated(template)
    rows: list[Row] = [{"prompt": "What is 1+2?"}]
    if says is None:  # no template
        assert encode_prompts(rows, tokenizer)[0].text == "What is 1+2?"
        return
    for ask in (encode_prompts, encode_examples):
        with pytest.raises(kind, match=says) as found:
            ask(rows, tokenizer)
        assert found.value.hint
        assert "\n" not in str(found.value.message)


def test_a_template_that_leaves_the_system_prompt_out_is_told() -> None:
    tokenizer = templated("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}>")
    assert encode_prompts([{"prompt": "a"}], tokenizer)[0].text == "a>"
    with pytest.raises(DataError, match="row 1: the chat template loses the system's text"):
        encode_prompts([{"prompt": "a", "system": "be brief"}], tokenizer)
    with pytest.raises(DataError, match="template sets tokenize, which rqat sets itself"):
        encode_prompts([{"prompt": "a", "template": {"tokenize": True}}], tokenizer)


def test_a_template_that_leaves_earlier_turns_out_is_told() -> None:
    turns = [("user", "first"), ("assistant", "<think>hm</think>second"), ("user", "third")]
    row: Any = {"messages": [{"role": role, "content": content} for role, content in turns]}
    one = "{% for m in messages %}{% if WHICH %}{{ m.content.split('</think>')[-1] }};{% endif %}{% endfor %}>"
    whole = templated(one.replace("WHICH", "true"))
    assert encode_prompts([row], whole)[0].text == "first;second;third;>"  # without the thinking, as many do
    for which, role in (("loop.last", "user"), ("m.role == 'user'", "assistant")):
        with pytest.raises(DataError, match=f"row 1: the chat template loses the {role}'s text"):
            encode_prompts([row], templated(one.replace("WHICH", which)))


def test_a_text_is_what_was_written_whatever_the_tokenizer_would_tidy() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    tokens = tokenizer("do n't , 1 .")["input_ids"]
    found = completion_from(tokenizer, Prompt("", ()), [*tokens, 1], frozenset({1}), 99)
    assert found.text == "do n't , 1 ."


def test_an_evaluation_says_which_problem(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Problem 0: the chat template loses"):
        run_task(Problems(rqat.TaskOptions()), "sums", tiny_model(), templated(PARTS))


def test_a_cut_off_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save_tiny(tmp_path / "model")
    done = CliRunner().invoke(build(), ["generate", str(tmp_path / "model"), "1+1=", "--max-new-tokens", "3"])
    assert done.exit_code == 0
    assert done.stderr == "Loading the model ...\nCut off after 3 tokens; --max-new-tokens allows more.\n"
    full = CliRunner().invoke(build(), ["generate", "builtin:tiny-reasoner", "1+2=", "--max-new-tokens", "99"])
    assert full.exit_code == 0
    assert full.stdout.strip()
    assert "Cut off" not in full.stderr


# --------------------------------------------------------------------------------------------- the user's turn


@pytest.mark.parametrize(
    ("template", "row", "opened", "behind"),
    [
        (PLAIN, {}, "[", "]>"),
        (ROLES, {"system": "be brief"}, "s:be brief;u:", ";a:"),
        (f"be brief;{ROLES}", {"prompt": "not asked"}, "be brief;u:", ";a:"),
        (THINKING, {"template": {"enable_thinking": False}}, "[", "]<think></think>"),
        ("{{ messages[-1]['content'] }}", {}, "", ""),
    ],
)
def test_a_prompt_that_ends_where_the_user_speaks(template: str, row: Row, opened: str, behind: str) -> None:
    tokenizer = templated(template)
    [(prompt, after)] = encode_openings([row], tokenizer)
    assert (prompt.text, after) == (opened, behind)
    start = tokenizer(opened, add_special_tokens=False)["input_ids"]
    assert list(prompt.tokens) == (start or [tokenizer.bos_token_id or tokenizer.eos_token_id])


def test_without_a_template_nobody_knows_where_a_user_speaks() -> None:
    with pytest.raises(DataError, match="has no chat template"):
        encode_openings([{}], tiny_tokenizer())


def test_a_users_words_end_before_what_the_template_puts_behind_them() -> None:
    tokenizer = templated("[{{ messages[-1]['content'] }}]" + tiny_tokenizer().eos_token)
    assert token_of_end(tokenizer, tokenizer.eos_token) == tokenizer.eos_token_id
    assert token_of_end(tokenizer, "]") is None

    class Scripted:
        """Writes one text, whatever it is asked."""

        at_once = 0

        def write(self, prompts: Any, *args: Any, **settings: Any) -> list[Any]:
            from rqat.generation.writer import Written

            return [Written(tokenizer("why?] because", add_special_tokens=False)["input_ids"]) for _ in prompts]

    model = tiny_model()
    [[asked]] = complete_rows(model, tokenizer, [{}], max_new_tokens=32, turn="user", writer=Scripted())  # type: ignore[arg-type]
    assert (asked.text, asked.ended) == ("why?", True)
    [[said]] = complete_rows(model, tokenizer, [{"prompt": "why?"}], max_new_tokens=32, writer=Scripted())  # type: ignore[arg-type]
    assert (said.text, said.ended) == ("why?] because", False)
