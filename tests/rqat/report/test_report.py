"""The report of a made-up run: every figure in its place, whole HTML, nothing fetched, nothing left unescaped."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from rqat import report
from rqat.cli.app import build
from rqat.evals.stats import NOT_SHOWN
from rqat.filled import filled
from rqat.plan import build_plan
from rqat.recipe import Recipe, load_recipe, shipped_recipes
from rqat.registry import Registry
from rqat.report import charts, planned, write_report
from rqat.report.page import recovered, value
from rqat.report.run_files import read_folder, read_run
from rqat.report.samples import held_against, pick, plain
from rqat.report.sizes import by_kind, stored_in, together
from rqat.run_lock import only_one
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
    shape = {"out_features": 8, "in_features": 64, "bits": 2.25}
    return [
        {"name": name, **shape, "error": error, "note": "" if "2" in name else "fell back to rounding"}
        for name in names
    ]


class TaskSettings:
    """Keys of an evaluation."""

    def __init__(self, task):
        self.task = task

    def model_dump(self, mode):
        return {"task": self.task, "limit": N, "batch": 8, "backend": "auto", "variants": None, "data": None}


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
        settings = TaskSettings(results["task"]) if "task" in results else SimpleNamespace(model_dump=lambda mode: {})
        plan_steps.append(
            SimpleNamespace(name=folder.name, stage=stage, variant=variant, inputs=inputs, settings=settings, parts={})
        )
    scheme = Scheme.parse("w2g64")
    plan = SimpleNamespace(recipe=recipe, model=recipe.model, scheme=scheme, spelled=str(scheme), steps=plan_steps)
    return SimpleNamespace(
        plan=plan,
        folder=tmp_path,
        device="cpu",
        told=["rows < wrote"],
        told_of_data=[],
        result_of=lambda name: tmp_path / name,
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


def test_what_was_found_in_the_data_stays_when_a_run_resumes(job):
    job.told_of_data = ["3 rows are left out"]
    report.begin(job)
    job.told_of_data = []  # those steps are done by now, and are not looked into
    assert planned.is_written(job)
    report.write(job)
    assert json.loads((job.folder / "manifest.json").read_text())["told"] == ["rows < wrote", "3 rows are left out"]
    job.plan.recipe = job.plan.recipe.model_copy(update={"name": "another"})
    assert planned.planned(job)["told"] == ["rows < wrote"]


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


def test_two_evaluations_of_one_task_are_two_tables(job):
    """Which differ in their options, and so in their prompts."""
    path = job.folder / "12-evaluate-bf16" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["results"] |= {"task": "arith", "prompt_hash": "b"}
    path.write_text(json.dumps(manifest))
    tasks = report.write(job)["tasks"]
    assert {label: list(variants) for label, variants in tasks.items()} == {
        "arith": ["bf16", "rtn", "gptq", "kd", "grpo"],
        "arith (2)": ["bf16"],
    }


def test_manifest_names_steps_versions_and_machine(job):
    report.write(job)
    manifest = json.loads((job.folder / "manifest.json").read_text())
    assert len(manifest["steps"]) == 12
    assert {"python", "torch", "transformers", "lm_eval"} <= manifest["packages"].keys()
    assert manifest["machine"]["cpus"] >= 1
    assert manifest["recipe"]["quantize"]["method"] == "gptq"


class Checker(HTMLParser):
    """Open and closing tags must match; collects tags, links and text."""

    VOID = frozenset({"meta", "path", "circle", "br", "wbr", "input"})

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
    assert len(checker.links) > 5
    for link in checker.links:  # to files beside it, which are opened only by who clicks
        assert not link.startswith(("/", ".", "#"))
        assert ":" not in link
        assert (job.folder / link).is_file(), link
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
        "92 %",
        "Loss",
        "Mean reward",
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
    assert checker.tags.count("svg") >= 3 + 2


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


def text_of(folder):
    checker = Checker()
    checker.feed((folder / "report.html").read_text())
    return " ".join(" ".join(checker.text).split())


def test_a_stopped_run_has_a_report_of_what_is_there(job):
    """Its plan says what was to come; a training that was begun shows its curves."""
    report.begin(job)
    for name in ("05-train-grpo", "12-evaluate-bf16"):
        (job.folder / name).rename(job.folder / f"{name}.partial")
    for path in job.folder.glob("*.partial/manifest.json"):
        path.unlink()
    write_report(job.folder)
    text = text_of(job.folder)
    assert "Stopped at 12-evaluate-bf16" in text
    assert "10 of 12 steps done" in text
    assert "Mean reward" in text
    assert "waiting" not in text  # both were begun
    assert f"rqat qat --recipe {job.folder}/recipe.yaml -o {job.folder}" in text
    assert not (job.folder / "summary.json").exists()


def test_a_model_that_is_only_compared_with_is_no_step_of_the_run(job):
    """Of a run that was stopped after it."""
    run = read_run(job)
    assert run.furthest(["bf16", "rtn", "gptq", "kd", "grpo"]) == "grpo"
    assert run.furthest(["bf16", "gptq", "rtn"]) == "gptq"
    assert run.furthest(["rtn"]) == "rtn"
    assert run.furthest([]) == ""


def test_a_run_that_goes_on_says_so(job):
    report.begin(job)
    (job.folder / "12-evaluate-bf16").rename(job.folder / "12-evaluate-bf16.partial")
    with only_one(job.folder):
        write_report(job.folder)
    text = text_of(job.folder)
    assert re.search(
        r"Running at 12-evaluate-bf16 when this page was written, 20\d\d-\d\d-\d\d \d\d:\d\d UTC; 11 of 12", text
    )
    assert f"rqat report {job.folder} writes this page as things are" in text


HOLDER = """
import sys, time
from pathlib import Path
from rqat.run_lock import only_one
with only_one(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_is_told_as_stopped(job):
    """SIGKILL leaves a lock file and a page that says "Running": both commands look whether anybody holds the lock."""
    report.begin(job)
    (job.folder / "12-evaluate-bf16").rename(job.folder / "12-evaluate-bf16.partial")
    (job.folder / "12-evaluate-bf16.partial" / "manifest.json").unlink()

    def state():
        done = CliRunner().invoke(build(), ["runs", "ls", str(job.folder), "--json"])
        return json.loads(done.stdout)[0]["state"]

    command = [sys.executable, "-c", HOLDER, str(job.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        write_report(job.folder)
        assert state() == "running"
        holder.kill()
    assert "Running at" in text_of(job.folder)
    assert state() == "stopped"
    assert CliRunner().invoke(build(), ["report", str(job.folder)]).exit_code == 0
    text = text_of(job.folder)
    assert "Stopped at 12-evaluate-bf16" in text
    assert "Running" not in text


def test_a_run_of_an_earlier_version_has_a_report(job):
    """Without plan.json; what a model started from is found by fingerprints."""
    report.write(job)
    (job.folder / "plan.json").unlink()
    for number, path in enumerate(sorted(job.folder.glob("0*/manifest.json"))):
        manifest = json.loads(path.read_text()) | {"fingerprint": str(number)}
        manifest["facts"] = {"inputs": {"start": "2"}} if "grpo" in path.parent.name else {}
        path.write_text(json.dumps(manifest))
    run = read_folder(job.folder)
    assert (run.name, run.scheme, len(run.steps)) == ("made-up & more", "w2g64", 12)
    assert run.before("grpo") == "kd"
    write_report(job.folder)
    assert "92 %" in text_of(job.folder)


DAMAGE = {
    "plan.json": ["", "[]", "{}", '{"steps": 3}', '{"steps": [{"name": "../.."}]}', "null"],
    "manifest.json": ["{", "[1]", '{"recipe": [], "told": 4, "packages": 1, "name": {}}'],
    "01-quantize-gptq/layers.json": ["{}", "[1, {}]", '[{"name": 3}]', '[{"name": "a.1.b", "error": "x", "bits": 0}]'],
    "03-train-kd/training.jsonl": ["{", '{"step": "x", "loss": null}\n{"step": 2, "loss": []}\n'],
    "07-evaluate-bf16/samples.jsonl": ["[]\n", '{"index": 1}\n', ""],
    "07-evaluate-bf16/manifest.json": ["", "{}"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts])
def test_refreshing_never_raises(job, caplog, name, text):
    report.write(job)
    (job.folder / name).write_text(text)
    (job.folder / "report.html").unlink()
    with caplog.at_level("DEBUG", logger="rqat"):
        report.refresh(job.folder)
    assert "was not written" not in caplog.text
    assert "Training" in text_of(job.folder)


ODD = [
    {"task": 3, "accuracy": 1, "low": 0, "high": 1, "n": 1, "seconds": 1},
    {"task": "t", "accuracy": "x", "low": 0, "high": 1, "n": 1, "seconds": 1},
    {"task": "t", "accuracy": 0.5, "low": 0.4, "high": 1, "n": 1, "seconds": 1, "seeds": 3, "truncated": "x"},
    {"task": "t", "accuracy": 23.0, "low": 20, "high": 30, "n": 1.5, "seconds": 1},
    {"task": "t", "figures": []},
    {"task": "t", "figures": {"kl": "x"}, "data": "d", "rows_hash": "h", "n": 1, "tokens": 2, "seconds": 1},
    {"bits_per_parameter": "x", "bytes": None},
    {"bits_per_parameter": 0, "bytes": 0, "rows_dropped_too_long": {}, "tokens": []},
]


@pytest.mark.parametrize("results", ODD)
def test_results_that_nobody_writes_have_a_report(job, results):
    report.write(job)
    for name in ("07-evaluate-bf16", "03-train-kd", "06-export-grpo"):
        path = job.folder / name / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"results": results}))
    write_report(job.folder)
    assert "Training" in text_of(job.folder)


def test_refreshing_what_is_no_run_does_nothing(tmp_path):
    report.refresh(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_the_command_writes_the_report_anew(job, tmp_path_factory):
    report.write(job)
    (job.folder / "report.html").unlink()
    done = CliRunner().invoke(build(), ["report", str(job.folder)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(job.folder / "report.html")
    assert (job.folder / "report.html").is_file()
    refused = CliRunner().invoke(build(), ["report", str(tmp_path_factory.mktemp("empty"))])
    assert refused.exit_code == 2
    assert "is no run" in refused.stderr


def pair(variant, against, says):
    return {"variant": variant, "against": against, "says": says, "task": "t"}


@pytest.mark.parametrize(
    ("gptq", "kd", "pairs", "value", "label"),
    [
        (0.5, 0.7, {"gptq": "worse", "kd": "better", "kd bf16": "worse"}, "50 %", "won back by kd"),
        # The quickstart on another processor: 94.7 and 96.3 of 95.9, and none of it shown.
        (0.947, 0.963, {"gptq": NOT_SHOWN, "kd": NOT_SHOWN, "kd bf16": NOT_SHOWN}, "no loss shown", "nothing to win"),
        (0.5, 0.55, {"gptq": "worse", "kd": NOT_SHOWN, "kd bf16": "worse"}, "none shown", "won back by kd"),
        (0.5, 0.92, {"gptq": "worse", "kd": "better", "kd bf16": NOT_SHOWN}, "all", "no difference to bf16 shown"),
        (0.5, 0.89, {"gptq": "worse", "kd": "better", "kd bf16": NOT_SHOWN}, "98 %", "won back by kd"),
        (0.5, 0.99, {"gptq": "worse", "kd": "better", "kd bf16": "better"}, "more", "better than bf16"),
    ],
)
def test_what_was_won_back_is_claimed_only_where_it_is_shown(gptq, kd, pairs, value, label):
    variants = {name: {"accuracy": share} for name, share in {"bf16": 0.9, "gptq": gptq, "kd": kd}.items()}
    told = [pair("gptq", "bf16", pairs["gptq"]), pair("kd", "gptq", pairs["kd"]), pair("kd", "bf16", pairs["kd bf16"])]
    found = recovered("gptq", "kd", variants, told)
    assert found is not None
    assert found[0] == value
    assert label in found[1]


def test_whiskers_lie_on_an_axis_that_fits():
    drawn = charts.intervals({"a": (0.93, 0.95, 0.97), "b": (0.90, 0.92, 0.94)})
    assert ">0 %<" not in drawn
    assert ">90 %<" in drawn
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", drawn)]
    assert min(widths) > 20  # of the lane: nobody needs a lens
    assert charts.intervals({"a": (0.0, 0.0, 0.0)}).count("whisker") == 1
    perplexity = charts.intervals({"a": (21.0, 23.4, 25.0), "b": (30.0, 31.0, 32.0)})
    assert ">23.4<" in perplexity
    assert "%<" not in perplexity


def test_heat_maps_share_one_scale():
    maps = {"gptq": {"q": {0: ("m.0.q", 0.01), 1: ("m.1.q", 0.1)}}, "rtn": {"q": {0: ("m.0.q", 0.1), 2: ("m.2.q", 0)}}}
    drawn = charts.heat_map(maps)
    assert drawn.count("--v:0%") == 2  # the smallest, and the key
    assert drawn.count("--v:100%") == 3
    assert 'title="m.1.q: 10.00%"' in drawn
    assert charts.heat_map({}) == ""


def test_layers_that_differ_by_their_block_are_one_line(job):
    report.write(job)
    text = text_of(job.folder)
    assert (
        "gptq, model.layers.*.self_attn.q_proj (2), model.layers.*.self_attn.k_proj (2): fell back to rounding" in text
    )
    assert text.count("fell back to rounding") == 2
    many = [f"model.layers.{i}.mlp.{kind}" for i in range(30) for kind in ("up_proj", "down_proj")]
    assert value(many) == "model.layers.*.mlp.up_proj (30), model.layers.*.mlp.down_proj (30)"


def test_sizes_add_up(job):
    (job.folder / "01-quantize-gptq" / "model.safetensors").write_bytes(dense({"norm.weight": [64]}))
    report.write(job)
    tensors = stored_in(read_run(job))
    assert [(one.name, one.bits) for one in tensors[-2:]] == [
        *(("model.layers.2.self_attn.k_proj", 2.25), ("norm.weight", 16.0))
    ]
    whole = together(tensors)
    assert (whole.count, whole.weights, whole.bytes) == (7, 6 * 512 + 64, 6 * 144 + 128)
    assert by_kind(tensors)[0].count == 3


def dense(shapes):
    header = json.dumps({name: {"dtype": "BF16", "shape": shape} for name, shape in shapes.items()}).encode()
    return len(header).to_bytes(8, "little") + header


def test_the_first_step_that_parts_is_marked():
    written = held_against("<|im_start|>1+1=2\n2+2=5\n\\boxed{5}<|im_end|>", "1+1=2\n2+2=4\n\\boxed{4}")
    assert (written.same, written.parted, written.rest) == ("1+1=2\n", "2+2=5\n", "\\boxed{5}")
    assert held_against("One. Two. Four.", "One. Two. Three. Four.").parted == "Four."
    assert held_against("same", "same").parted == ""
    assert held_against("", "x") == held_against("", None)
    assert plain("<s>[INST] a < b [/INST]</s><｜User｜>x<|endoftext|>") == "a < b x"
    long = held_against("a\n" * 2000 + "b\n" * 9000, "a\n" * 2000 + "c")
    assert (long.hidden, len(long.same), long.cut) == (4000 - 600, 600, True)
    assert len(long.same + long.parted + long.rest) <= 4000


def test_samples_can_be_filtered_by_what_became_of_them(job):
    picked = pick(read_run(job), "arith")
    assert picked.counts == {"all": 40, "changed": 34, "lost": 2, "gained": 0}
    assert [one.index for one in picked.shown if "lost" in one.kinds] == [34, 35]
    report.write(job)
    page = (job.folder / "report.html").read_text()
    for kind in ("all", "changed", "lost", "gained"):
        assert f'id="filter-{kind}"' in page
    assert page.count('class="problem changed lost"') == 2


def test_the_commands_name_this_run(job):
    report.write(job)
    text = text_of(job.folder)
    assert f"rqat qat --recipe {job.folder}/recipe.yaml -o {job.folder}-again" in text
    assert f"rqat eval arith {job.folder}/05-train-grpo --limit 40 --batch 8" in text


def test_the_recipe_beside_the_report_makes_the_same_plan(tmp_path):
    """With every default filled in, those of plugins too."""
    registry = Registry.discover()
    for name in ("quickstart", *sorted(set(shipped_recipes()) - {"quickstart"})[:3]):
        plan = build_plan(load_recipe(name, ["model=builtin:tiny-reasoner"]), registry)
        whole = filled(plan)
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
        again = build_plan(load_recipe(tmp_path / "recipe.yaml"), registry)
        assert [again.fingerprint(step) for step in again.steps] == [plan.fingerprint(step) for step in plan.steps]
        assert filled(again) == whole
    quick = filled(build_plan(load_recipe("quickstart"), registry))
    assert quick["quantize"]["damp"] == 0.01
    assert quick["train"][1]["epsilon"] == 0.2
    assert quick["evaluate"][0]["temperature"] == 0.0
    assert quick["train"][0]["data"]["rows"] == 20000
