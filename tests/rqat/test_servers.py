"""What is known of servers: only what was seen, and never more of a model than of each of its schemes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rqat import Scheme, servers
from rqat.model.families import LLAMA
from rqat.registry import Registry
from rqat.servers import COMMANDS, Trial, called, markdown, outlooks, seen, torn_apart, trials

NAMES = LLAMA.layer_names(2)
Q, K, V, O, GATE, UP, DOWN = NAMES[:7]  # noqa: E741
W4, W2 = Scheme.parse("w4g128"), Scheme.parse("w2g128-sym")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that loads 4 bits and refuses 2, and one that loads both."""
    found = (
        Trial("vllm", "1", "f", 4, False, 128, True, 0.25),
        Trial("vllm", "1", "f", 2, True, 128, False, words="no kernel"),
        Trial("transformers", "5", "f", 4, False, 128, True, 0.0),
        Trial("transformers", "5", "f", 2, True, 128, True, 0.125),
    )
    monkeypatch.setattr(servers, "trials", lambda: found)


def test_the_table_names_formats_servers_and_schemes_that_there_are() -> None:
    formats = {card.name for card in Registry.discover().cards("exporter")}
    for trial in trials():
        assert trial.format in formats
        assert trial.server in COMMANDS
        assert Scheme(bits=trial.bits, group=trial.group, symmetric=trial.symmetric)  # type: ignore[arg-type]
        assert trial.loads or trial.words, f"{trial}: a refusal has words"
    keys = [(t.server, t.version, t.format, t.bits, t.symmetric, t.group) for t in trials()]
    assert len(keys) == len(set(keys))


@pytest.mark.usefixtures("table")
def test_a_server_loads_a_model_when_it_loads_every_scheme_of_it() -> None:
    assert [(each.server, each.loads, each.difference) for each in outlooks("f", [W4])] == [
        ("vllm", True, 0.25),
        ("transformers", True, 0.0),
    ]
    vllm, transformers = outlooks("f", [W4, W2])
    assert (vllm.loads, vllm.words) == (False, "no kernel")
    assert (transformers.loads, transformers.difference) == (True, 0.125)
    assert [each.loads for each in outlooks("f", [W4, Scheme.parse("w4g64")])] == [None, None]
    assert outlooks("another", [W4]) == []


def test_layers_that_read_one_input_and_differ_are_found() -> None:
    whole = dict.fromkeys(NAMES, W4)
    assert torn_apart(LLAMA, 2, whole) == []
    assert torn_apart(LLAMA, 2, whole | {O: W2, DOWN: W2}) == []
    assert torn_apart(LLAMA, 2, {name: W4 for name in NAMES if not name.endswith(("q_proj", "k_proj", "v_proj"))}) == []
    assert torn_apart(LLAMA, 2, {name: W4 for name in NAMES if name != Q}) == [(Q, K, V)]
    assert torn_apart(LLAMA, 2, whole | {K: W2, UP: W2}) == [(Q, K, V), (GATE, UP)]
    second = {name: W4 for name in NAMES if name != NAMES[7]}
    assert torn_apart(LLAMA, 2, second) == [tuple(NAMES[7:10])]


@pytest.mark.usefixtures("table")
def test_servers_that_fuse_layers_refuse_those_torn_apart() -> None:
    schemes = {name: W4 for name in NAMES if name != Q}
    vllm, transformers = seen("f", schemes, torn_apart(LLAMA, 2, schemes))
    assert vllm.loads is False
    assert "q_proj and k_proj and v_proj as one layer" in vllm.words
    assert transformers.loads is True
    text = markdown([vllm, transformers])
    assert "vllm 1 refuses it: it computes" in text
    assert "```" not in text, "no command of a server that refuses"
    assert "Seen to load it: transformers 5." in text
    assert "```shell\nvllm serve THIS_FOLDER\n```" in markdown(outlooks("f", [W4]))
    assert markdown([vllm]).startswith("No server was seen to load it.")


def test_a_server_that_does_not_start_says_nothing_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.servers import table as made
    from tests.servers.environments import Server

    monkeypatch.setitem(made.SERVERS, "absent", Server((), "no_such_probe.py", (), ""))
    monkeypatch.setattr(made, "python_of", lambda name: Path(sys.executable))
    with pytest.raises(RuntimeError, match=r"absent does not start: .*no_such_probe"):
        made.probe("absent", [tmp_path], [])


def test_words_of_a_refusal_are_those_that_count() -> None:
    from tests.servers.table import said

    given = "1 validation error for VllmConfig Value error, no such thing: bits=2 [type=value_error, input_value=...]"
    assert said(given) == "no such thing: bits=2"
    assert said("Failed to find a kernel. Reasons: A cannot. B cannot.") == "Failed to find a kernel."
    assert said("expected one of [2, 3]") == "expected one of [2, 3]"


def test_a_quantized_head_is_promised_of_those_alone_that_read_it() -> None:
    """Seen by starting them: transformers' log-probabilities of a gptq file with one are 53 % apart."""
    scheme = Scheme.parse("w4g128-sym")
    found = {each.server: each for each in seen("gptq", {"a": scheme, "lm_head": scheme})}
    assert found["transformers"].loads is False
    assert "lm_head" in found["transformers"].words
    assert found["gptqmodel"].loads is True
    assert found["vllm"].loads is True
    assert next(each for each in seen("gptq", {"a": scheme}) if each.server == "transformers").loads is True
    found = {each.server: each for each in seen("compressed-tensors", {"a": scheme, "lm_head": scheme})}
    assert (found["transformers"].loads, found["vllm"].loads) == (True, False)


def test_a_family_is_promised_of_those_alone_that_read_it() -> None:
    scheme = Scheme.parse("w4g128-sym")
    for form in ("gptq", "awq"):
        phi3 = {each.server: each for each in seen(form, {"a": scheme}, family="phi3")}
        assert phi3["gptqmodel"].loads is False
        assert phi3["vllm"].loads is phi3["transformers"].loads is True
        assert all(each.loads for each in seen(form, {"a": scheme}, family="olmo2"))
        biased = called({"model_type": "qwen3", "attention_bias": True})
        assert [e.server for e in seen(form, {"a": scheme}, family=biased) if not e.loads] == ["vllm"]
        assert all(each.loads for each in seen(form, {"a": scheme}, family=called({"model_type": "qwen3"})))


def test_packed_experts_are_promised_at_schemes_alone_that_were_tried_with_them() -> None:
    for spelled, vllm in (("w4g128-sym", True), ("w4-row-sym", None)):
        scheme = {"a": Scheme.parse(spelled)}
        found = {each.server: each.loads for each in seen("compressed-tensors", scheme, family="qwen3_moe")}
        assert found == {"transformers": False, "vllm": vllm}
        assert {each.loads for each in seen("compressed-tensors", scheme, family="qwen3")} == {True}
