"""The report of a made-up run: every figure in its place, whole HTML, nothing fetched, nothing left unescaped."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from rqat import report
from rqat.recipe import Recipe
from rqat.report import charts
from rqat.report.summary import NOT_SHOWN
from rqat.scheme import Scheme

EVIL = '<script>alert("x")</script> & \\boxed{7}'
N = 40


def evaluation(variant, right, task="arith"):
    """A step in which the problems `right` are solved."""
    samples = [
        {"index": i, "seed": 42, "prompt": f"{EVIL} {i}", "completion": f"{EVIL} {variant} {i}", "answer": str(i)}
        | {"verdict": "correct" if i in right else "wrong", "tokens": 9, "truncated": False, "looping": False}
        for i in range(N)
    ]
    share = len(right) / N
    results = {
        "task": task,
        "variant": variant,
        "n": N,
        "correct": len(right),
        "wrong": N - len(right),
        "unverifiable": 0,
    }
    results |= {
        "accuracy": share,
        "low": share * 0.9,
        "high": min(1, share * 1.1),
        "interval": "Wilson",
        "seconds": 1.5,
    }
    results |= {"truncated": 0.0, "repetition": 0.0, "unclosed_think": 0.0, "mean_tokens": 9.0, "prompt_hash": "a"}
    return "evaluate", variant, results, {"samples.jsonl": samples}


def lines(count):
    return [{"step": i, "loss": 2.0 / i, "reward": i / count, "lr": 1e-4, "seconds": 0.1} for i in range(1, count + 1)]


def layers(error):
    names = [f"model.layers.{i}.self_attn.{kind}" for i in range(3) for kind in ("q_proj", "k_proj")]
    return [{"name": name, "error": error, "note": "fell back to rounding" if "0" in name else ""} for name in names]


@pytest.fixture
def job(tmp_path):
    recipe = Recipe.model_validate(
        {
            "name": "made-up & more",
            "model": {"path": "builtin:tiny-reasoner"},
            "quantize": {"method": "gptq"},
            "compare": [{"method": "rtn"}],
            "evaluate": [{"task": "arith"}],
        }
    )
    steps = [
        ("quantize", "gptq", {"layers": 6}, {"layers.json": layers(0.1)}),
        ("quantize", "rtn", {"layers": 6}, {"layers.json": layers(0.3)}),
        ("train", "kd", {"steps": 60}, {"training.jsonl": lines(60)}),
        ("gate", "grpo", {"pass_rate": 0.4, "passed": True, "why": ""}, {}),
        ("train", "grpo", {"steps": 30}, {"training.jsonl": lines(30)}),
        ("export", "grpo", {"format": "compressed-tensors", "max_abs_diff": 0.0}, {}),
        evaluation("bf16", set(range(36))),
        evaluation("rtn", set(range(2))),
        evaluation("gptq", set(range(10))),
        evaluation("kd", set(range(30))),
        evaluation("grpo", set(range(34))),
        evaluation("bf16", set(range(36)), "math500"),
    ]
    plan_steps = []
    for number, (stage, variant, results, files) in enumerate(steps, 1):
        folder = tmp_path / f"{number:02}-{stage}-{variant}"
        folder.mkdir()
        for name, content in files.items():
            many = name.endswith(".jsonl")
            text = "".join(json.dumps(row) + "\n" for row in content) if many else json.dumps(content)
            (folder / name).write_text(text)
        manifest = {
            "step": folder.name,
            "stage": stage,
            "variant": variant,
            "fingerprint": "f" * 64,
            "facts": {},
            "files": {},
            "seconds": 2.5,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest | {"results": results}))
        before = {"kd": "01-quantize-gptq", "grpo": "03-train-kd"}.get(variant) if stage == "train" else None
        inputs = {"start": before} if before else {}
        plan_steps.append(SimpleNamespace(name=folder.name, stage=stage, variant=variant, inputs=inputs))
    plan = SimpleNamespace(recipe=recipe, scheme=Scheme.parse("w2g64"), steps=plan_steps)
    return SimpleNamespace(
        plan=plan, folder=tmp_path, device="cpu", told=["rows < wrote"], result_of=lambda name: tmp_path / name
    )


def test_summary_has_every_arm_of_the_first_task(job):
    summary = report.write(job)
    assert json.loads((job.folder / "summary.json").read_text()) == summary
    assert list(summary["variants"]) == ["bf16", "rtn", "gptq", "kd", "grpo"]
    assert summary["variants"]["bf16"]["accuracy"] == 0.9
    for figures in summary["variants"].values():
        assert {"task", "n", "accuracy", "low", "high", "seconds"} <= figures.keys()
    assert set(summary["tasks"]) == {"arith", "math500"}
    assert (summary["name"], summary["scheme"], summary["task"]) == ("made-up & more", "w2g64", "arith")


def test_every_model_is_compared_with_bf16_with_the_quantized_one_and_with_its_own_start(job):
    pairs = {(row["variant"], row["against"]): row for row in report.write(job)["paired"] if row["task"] == "arith"}
    quantized = {("rtn", "bf16"), ("rtn", "gptq"), ("gptq", "bf16")}
    trained = {(variant, against) for variant in ("kd", "grpo") for against in ("bf16", "gptq")}
    assert set(pairs) == quantized | trained | {("grpo", "kd")}
    assert (pairs["grpo", "kd"]["gained"], pairs["grpo", "kd"]["lost"]) == (4, 0)
    assert pairs["kd", "gptq"]["says"] == "better"
    assert (pairs["kd", "gptq"]["gained"], pairs["kd", "gptq"]["lost"]) == (20, 0)
    assert pairs["kd", "bf16"]["says"] == "worse"
    assert pairs["grpo", "bf16"]["says"] == NOT_SHOWN


def test_models_that_were_asked_something_else_are_not_compared(job):
    path = job.folder / "07-evaluate-bf16" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["results"]["prompt_hash"] = "b"
    path.write_text(json.dumps(manifest))
    assert {row["against"] for row in report.write(job)["paired"]} == {"gptq", "kd"}


def test_manifest_names_steps_versions_and_machine(job):
    report.write(job)
    manifest = json.loads((job.folder / "manifest.json").read_text())
    assert len(manifest["steps"]) == 12
    assert {"python", "torch", "transformers", "lm_eval"} <= manifest["packages"].keys()
    assert manifest["machine"]["cpus"] >= 1
    assert manifest["recipe"]["quantize"]["method"] == "gptq"


class Checker(HTMLParser):
    """Open and closing tags must match; collects tags, links and text."""

    VOID = frozenset({"meta", "path", "circle", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_one_whole_file_that_fetches_nothing(job):
    report.write(job)
    page = (job.folder / "report.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "script" not in checker.tags
    assert checker.links == []
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert len(page) < 200_000


def test_page_shows_every_part(job):
    report.write(job)
    checker = Checker()
    checker.feed((job.folder / "report.html").read_text())
    text = " ".join(checker.text)
    for part in (
        "90.0 %",
        "25.0 %",
        "92%",
        "kd: Loss",
        "grpo: Mean reward",
        "q_proj",
        "Cold-start gate",
        "Export check",
    ):
        assert part in text, part
    for part in (
        "Wrong after gptq, right after grpo",
        "Right before quantization, wrong after grpo",
        EVIL,
        "method: gptq",
    ):
        assert part in text, part
    assert checker.tags.count("svg") >= 5 + 4 + 2


def test_the_same_files_give_the_same_page(job):
    report.write(job)
    first = (job.folder / "report.html").read_bytes()
    report.write(job)
    assert (job.folder / "report.html").read_bytes() == first


def test_a_run_without_evaluations_has_a_report_too(job):
    job.plan.steps = [step for step in job.plan.steps if step.stage == "quantize"]
    summary = report.write(job)
    assert summary["variants"] == {}
    assert summary["task"] is None
    assert "Error of every layer" in (job.folder / "report.html").read_text()


def test_a_curve_of_any_length_is_drawn():
    for count in (1, 2, 9, 5000):
        points = [(i, (i % 7) - 3.0) for i in range(count)]
        drawn = charts.curves({"a": points}, title="t", x_label="step", smooth=True)
        assert drawn.count("<svg") == 1
        assert len(drawn) < 30_000
    assert charts.curves({"a": [(1, float("nan"))]}, title="t", x_label="step") == ""
    assert "nan" not in charts.curves({"a": [(1, 0.0), (2, float("inf")), (3, 0.0)]}, title="t", x_label="step")


def test_ticks_span_the_values():
    for low, high in ((0, 1), (0, 0), (0, 0.00037), (-5, 3), (1, 10_000), (2.5, 2.5)):
        ticks = charts._ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 8
