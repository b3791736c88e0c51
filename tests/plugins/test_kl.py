"""The task `kl`: its figures by hand, which tokens count, and what a run and `rqat eval` make of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from rqat import DataError, RecipeError, TokenRow
from rqat.evals.compare import compare, rows_of, tokenized
from rqat.plan import Plan, build_plan
from rqat.preflight import preflight
from rqat.recipe import built_recipe
from rqat.registry import Registry
from rqat.storage import read_json, read_json_lines
from rqat.testing import ComparisonSuite
from rqat_kl.task import TOGETHER_TOKENS
from tests.rqat.cli.test_commands import rqat
from tests.tiny import CHARACTERS, save_tiny, tiny_model, tiny_tokenizer

ARITH = [{"source": "arith"}]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover()


def task(registry: Registry, **options: Any) -> Any:
    card = registry.card("task", "kl")
    return registry.make(card, registry.options(card, {"rows": ARITH, **options}))


def some_rows(count: int = 3, length: int = 40) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(0)
    highest = len(CHARACTERS)
    return [
        TokenRow(tuple(torch.randint(3, highest, (length + i,), generator=generator).tolist()), 5 + i)
        for i in range(count)
    ]


def by_hand(model: Any, original: Any, rows: list[TokenRow], vocabulary: int) -> tuple[float, float, int]:
    divergence, surprise, count = 0.0, 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.tokens])
            p, q = (m(input_ids=ids).logits[0, :-1, :vocabulary].double().log_softmax(-1) for m in (original, model))
            for position in range(row.prompt - 1, len(row.tokens) - 1):
                divergence += float((p[position].exp() * (p[position] - q[position])).sum())
                surprise -= float(q[position, row.tokens[position + 1]])
                count += 1
    return divergence / count, math.exp(surprise / count), count


def test_no_sequence_is_longer_than_the_models_were_made_for(registry: Registry) -> None:
    model, original, rows = tiny_model(1, context=64), tiny_model(0, context=32), some_rows(2, 90)
    words = tiny_tokenizer()
    for pack in (False, True):
        found = compare(task(registry, pack=pack), model, original, words, rows)
        assert found == compare(task(registry, pack=pack, tokens=32), model, original, words, rows)
        assert found != compare(task(registry, pack=pack, tokens=31), model, original, words, rows)


@pytest.mark.parametrize("piece", [1 << 24, 1 << 9])
def test_figures_are_those_worked_out_by_hand(registry: Registry, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    made, words = task(registry), tiny_tokenizer()
    model, original, rows = tiny_model(1), tiny_model(0), some_rows()
    monkeypatch.setattr("rqat_kl.task.PIECE_ELEMENTS", piece)
    figures, per_row = compare(made, model, original, words, rows)
    kl, perplexity, count = by_hand(model, original, rows, len(words.get_vocab()))
    assert kl > 0.01
    # Softmaxes in float32 here, in float64 by hand.
    assert figures["kl"] == pytest.approx(kl, rel=1e-4)
    assert figures["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert [row["tokens"] for row in per_row] == [len(row.tokens) - row.prompt for row in rows]
    assert sum(row["tokens"] * row["kl"] for row in per_row) / count == pytest.approx(figures["kl"])


@pytest.mark.parametrize(("most", "groups"), [(0, 7), (44, 7), (90, 4), (172, 2), (9999, 1)])
def test_sequences_that_run_together_are_judged_as_if_alone(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, most: int, groups: int
) -> None:
    made, words = task(registry), tiny_tokenizer()
    model, original, rows = tiny_model(1), tiny_model(0), some_rows(7, 37)
    alone = compare(made, model, original, words, rows)
    passes: list[torch.Size] = []
    with model.base_model.register_forward_pre_hook(
        lambda module, given, named: passes.append(named["input_ids"].shape), with_kwargs=True
    ):
        monkeypatch.setitem(TOGETHER_TOKENS, "cpu", most)
        together = compare(made, model, original, words, rows)
    assert len(passes) == groups
    assert all(shape.numel() <= most or shape[0] == 1 for shape in passes)
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    for one, other in zip(together[1], alone[1], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_model_beside_itself_and_as_it_was_before(registry: Registry) -> None:
    model = tiny_model(0).train()
    twin = tiny_model(0)
    for original in (model, twin):
        figures, _ = compare(task(registry), model, original, tiny_tokenizer(), some_rows())
        assert figures["kl"] == 0
    assert model.training
    assert not twin.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_which_tokens_count(registry: Registry) -> None:
    model, words = tiny_model(0), tiny_tokenizer()
    rows = [TokenRow(tuple(range(3, 23)), 6), TokenRow(tuple(range(3, 10)), 7), TokenRow((5,), 0)]

    def counted(**options: Any) -> list[int]:
        return [int(row["tokens"]) for row in compare(task(registry, **options), model, model, words, rows)[1]]

    assert counted() == [14, 0, 0]
    assert counted(positions="all") == [19, 6, 0]
    # Pieces of 8: tokens 6 and 7 of the first, then all but the first of each further one.
    assert counted(tokens=8) == [2 + 7 + 3, 0, 0]
    # 28 tokens in a row: sequences of 8 end in rows 0, 0 and 1.
    assert counted(pack=True, tokens=8) == [14, 7, 0]
    with pytest.raises(DataError, match="no token counts"):
        compare(task(registry, pack=True, tokens=64), model, model, words, rows)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rows": None}, "says nothing of the rows"),
        ({"data": "x.txt"}, "data: stands beside rows"),
        ({"rows": [{"source": "aritj"}]}, "'aritj' is not a source"),
        ({"tokens": 1}, "has to be"),
    ],
)
def test_mistakes_are_told(registry: Registry, options: dict[str, Any], says: str) -> None:
    raw = {key: value for key, value in ({"rows": ARITH} | options).items() if value is not None}
    with pytest.raises(RecipeError) as caught:
        registry.options(registry.card("task", "kl"), raw)
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl"])
def test_a_file_is_read_whole(registry: Registry, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = [f"Paragraph {n}." for n in range(30)]
    path.write_text("\n\n".join(lines) if name.endswith("txt") else "".join(f'{{"text": "{x}"}}\n' for x in lines))
    card = registry.card("task", "kl")
    made = registry.make(card, registry.options(card, {"data": str(path)}))
    assert [row["text"] for row in rows_of(made, "kl", None)] == lines
    assert len(rows_of(made, "kl", 4)) == 4
    assert [row.prompt for row in tokenized(rows_of(made, "kl", 2), tiny_tokenizer())] == [0, 0]


def test_rows_without_end_want_a_limit(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rqat.evals.compare.MOST_ROWS", 10)
    with pytest.raises(DataError, match="10 rows or more"):
        rows_of(task(registry), "kl", None)


# ------------------------------------------------------------------------------------------------------ the plan


def planned(registry: Registry, *evaluate: dict[str, Any], **more: Any) -> Plan:
    recipe = {"name": "kl", "model": "builtin:tiny-reasoner", "quantize": "rtn", "export": None}
    return build_plan(built_recipe(recipe | {"evaluate": list(evaluate)} | more, {}), registry)


def test_it_counts_what_it_is_compared_with(registry: Registry, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other")

    def print_of(**keys: Any) -> str:
        plan = planned(registry, {"task": "kl", "rows": ARITH, **keys})
        return plan.fingerprint(plan.steps[-1])

    prints = {print_of(), print_of(original=str(other)), print_of(seed=1), print_of(limit=3), print_of(tokens=99)}
    assert len(prints) == 5
    assert print_of(variants=["rtn"]) in prints


def test_traces_are_written_for_it_and_shared(registry: Registry) -> None:
    traces = {"source": "traces", "prompts": "arith", "limit": 8}
    plan = planned(registry, {"task": "kl", "rows": [traces]}, {"task": "kl", "rows": [traces], "tokens": 64})
    assert [step.name for step in plan.steps] == [
        "01-quantize-rtn",
        "02-produce-traces",
        "03-evaluate-kl-bf16",
        "04-evaluate-kl-rtn",
        "05-evaluate-kl-bf16-2",
        "06-evaluate-kl-rtn-2",
    ]
    assert [step.reads for step in plan.steps[2:]] == [["02-produce-traces"]] * 4
    assert plan.steps[1].settings.split == "validation"


def test_what_compares_grades_nothing_and_what_grades_compares_nothing(registry: Registry) -> None:
    with pytest.raises(RecipeError, match="'arith' compares no models; those that do: kl"):
        planned(registry, {"task": "arith", "original": "builtin:tiny-reasoner"})
    with pytest.raises(RecipeError) as caught:  # of what is wrong otherwise it is not said that it compares nothing
        planned(registry, {"task": "kl", "rows": [], "original": "builtin:tiny-reasoner"})
    assert len(caught.value.problems) == 1
    grpo = {"objective": "grpo", "data": "arith", "task": "kl", "steps": 1}
    with pytest.raises(RecipeError, match="'kl' compares models; it grades no completion"):
        planned(registry, train=[grpo])
    traces = {"source": "traces", "prompts": "arith", "task": "kl"}
    with pytest.raises(RecipeError, match="'kl' compares models; it grades no completion"):
        planned(registry, calibration=traces)


def test_an_original_that_is_not_there_is_told_before_the_run(registry: Registry) -> None:
    plan = planned(registry, {"task": "kl", "rows": ARITH, "original": "./nowhere"})
    assert any("original" in found.text and "./nowhere" in found.text for found in preflight(plan, offline=True))


# ---------------------------------------------------------------------------------------------- with a real model


@pytest.mark.slow
def test_conformance(registry: Registry) -> None:
    class Kl(ComparisonSuite):
        name = "kl"
        options: ClassVar = {"rows": ARITH}

    Kl.registry = registry
    suite = Kl()
    for test in (name for name in dir(suite) if name.startswith("test_")):
        getattr(suite, test)()


@pytest.mark.slow
def test_a_run_shows_every_variant(tmp_path: Path) -> None:
    recipe, run = tmp_path / "kl.yaml", tmp_path / "run"
    traces = {"source": "traces", "prompts": "arith", "limit": 6, "max_new_tokens": 64}
    steps = {"steps": 2, "batch": 4, "max_tokens": 256}
    recipe.write_text(
        yaml.safe_dump(
            {
                "name": "kl",
                "model": "builtin:tiny-reasoner",
                "quantize": "rtn",
                "train": [{"objective": "kd", "data": "arith", **steps}],
                "export": None,
                "evaluate": [
                    {"task": "kl", "rows": [traces]},
                    {"task": "kl", "data": __file__, "limit": 5},
                    {"task": "arith", "limit": 2, "max_new_tokens": 8},
                ],
            }
        )
    )
    result = rqat("qat", "-r", recipe, "-o", run)
    assert result.exit_code == 0, result.stderr
    found = read_json(run / "summary.json")["compared"]
    assert list(found) == ["kl on traces (arith)", "kl on text test_kl.py"]
    for variants in found.values():
        assert list(variants) == ["bf16", "rtn", "kd"]
        assert variants["bf16"]["figures"]["kl"] == 0
        assert variants["rtn"]["figures"]["kl"] > 0.01
        low, high = variants["rtn"]["intervals"]["kl"]
        assert low < variants["rtn"]["figures"]["kl"] < high
        assert set(variants["kd"]["paired"]["rtn"]) == {"kl", "perplexity"}
        assert variants["rtn"]["figures"]["perplexity"] > variants["bf16"]["figures"]["perplexity"] > 1
    assert read_json(run / "summary.json")["task"] == "arith"
    page = (run / "report.html").read_text()
    assert page.count("<h2>Distance: kl on") == 2
    assert page.count("perplexity against<br>rtn") == 2
    assert "kl on text test_kl.py" in result.stdout
    assert "perplexity" in result.stdout


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    models = (save_tiny(tmp_path / "model", 1), "--original", save_tiny(tmp_path / "original", 0))
    result = rqat("eval", "kl", *models, "--set", "rows=arith", "--limit", 3, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["figures"]["kl"] > 0.001
    assert found["original"] == str(tmp_path / "original")
    assert [row["index"] for row in read_json_lines(out / "samples.jsonl")] == [0, 1, 2]
    shown = rqat("eval", "kl", tmp_path / "model", "--set", "rows=arith", "--limit", 3, "-o", out)
    assert shown.exit_code == 0, shown.stderr
    assert "perplexity" in shown.stdout
    assert "3 of arith" in shown.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("kl", "builtin:tiny-reasoner"), "TASK: kl: says nothing of the rows; name a source (rows: gsm8k) or"),
        (("kl", "builtin:tiny-reasoner", "--data", "nowhere.txt"), "there is no file 'nowhere.txt'"),
        (("arith", "builtin:tiny-reasoner", "--original", "x"), "'arith' compares no models"),
        (("kl", "builtin:tiny-reasoner", "--set", "rows=arith", "--original", "./nowhere"), "./nowhere"),
    ],
)
def test_mistakes_of_the_command_leave_nothing(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    result = rqat("eval", *words, "-o", tmp_path / "new" / "out")
    assert result.exit_code == 2
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- beside the training


WATCHED = {
    "objective": "kd",
    "data": "arith",
    "steps": 5,
    "batch": 4,
    "max_tokens": 256,
    "lr": 1e-2,
    "save_every": 2,
    "watch": {"task": "kl", "rows": ARITH, "every": 2, "limit": 3},
}


def test_looking_on_decides_nothing(registry: Registry) -> None:
    without = {key: value for key, value in WATCHED.items() if key != "watch"}
    traces = [{"source": "traces", "prompts": "arith", "limit": 4}]
    plans = [
        planned(registry, train=[without | watch])
        for watch in ({}, {"watch": WATCHED["watch"]}, {"watch": {"task": "kl", "rows": traces}})
    ]
    assert len({plan.fingerprint(plan.steps[-1]) for plan in plans}) == 1
    assert [step.name for step in plans[2].steps] == ["01-quantize-rtn", "02-produce-traces", "03-train-kd"]
    assert plans[2].steps[-1].reads == ["02-produce-traces"]


def test_what_cannot_look_on_is_told(registry: Registry) -> None:
    with pytest.raises(RecipeError, match=r"train.0.watch: 'arith' compares no models; those that do: kl"):
        planned(registry, train=[WATCHED | {"watch": "arith"}])
    with pytest.raises(RecipeError, match="says nothing of the rows"):
        planned(registry, train=[WATCHED | {"watch": "kl"}])
    planned(registry, train=[WATCHED | {"watch": WATCHED["watch"] | {"task": "rqat_kl:kl"}}])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["kd", "sft"])
def test_looking_on_changes_no_weight(tmp_path: Path, objective: str) -> None:
    weights = []
    for name, watch in (("without", None), ("with", WATCHED["watch"])):
        recipe = {"name": name, "model": "builtin:tiny-reasoner", "quantize": "rtn", "export": None}
        train = WATCHED | {"objective": objective, "watch": watch}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe | {"train": [train]}))
        result = rqat("qat", "-r", tmp_path / f"{name}.yaml", "-o", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        step = tmp_path / name / f"02-train-{objective}"
        weights.append([(step / file).read_bytes() for file in ("quantized.safetensors", "latents.safetensors")])
    assert weights[0] == weights[1]
    assert weights[0][0] != (tmp_path / "with" / "01-quantize-rtn" / "quantized.safetensors").read_bytes()
    lines = read_json_lines(step / "training.jsonl")
    assert [line["step"] for line in lines if "watch/kl" in line] == [2, 4, 5]
    assert all(line["watch/kl"] > 0 and line["watch/perplexity"] > 1 for line in lines if "watch/kl" in line)
    assert "kl beside the model before quantization" in (tmp_path / "with" / "report.html").read_text()


def test_a_sequence_longer_than_the_context_is_told_in_the_plan(registry: Registry, tmp_path: Path) -> None:
    model = str(save_tiny(tmp_path / "model", context=64))

    def told(**options: Any) -> list[str]:
        task = {"task": "kl", "rows": "arith", "variants": ["bf16"], **options}
        keys = {"name": "r", "model": model, "quantize": "rtn", "scheme": "w4g32", "export": None, "evaluate": [task]}
        return [
            str(found) for found in preflight(build_plan(built_recipe(keys, {}), registry)) if "context" in found.text
        ]

    assert told() == told(tokens=64) == []
    (line,) = told(tokens=65)
    assert line.startswith("warning")
    assert "tokens: 65, but the model's context is 64" in line
