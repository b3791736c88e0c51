"""The bench itself, on the CPU: every operation has a case, rows reach the disk at once, nothing stops the others."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import page, plots, publish, registry, runner, summary
from bench.bench import Absent, Bench, poisoned, relative
from bench.registry import Job
from bench.table import COLUMNS, Row, Table, compact, machine, read
from bench.timing import Contender, copies_for, in_graph, interleave

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "kernels" / "rqat_kernels"


@pytest.fixture
def bench() -> Bench:
    return Bench("cpu", small=True, rounds=3, ceilings={"bandwidth": 1e10, "bf16": 1e11})


@pytest.fixture
def table(tmp_path) -> Table:
    return Table(tmp_path / "part1.csv", machine(), seed=0)


def test_every_operation_has_a_case_or_a_reason():
    folders = {path.parent.name for path in OPERATIONS.glob("*/__init__.py")}
    assert folders - registry.covered() - set(registry.WITHOUT) == set()
    assert set(registry.WITHOUT) <= folders


def test_every_operation_is_checked_before_it_is_timed():
    for part in registry.PARTS:
        jobs = registry.jobs(part)
        assert jobs
        assert [job.check for job in jobs] == sorted((job.check for job in jobs), reverse=True)
    checked = {job.op for part in registry.PARTS for job in registry.jobs(part) if job.check}
    folders = {path.parent.name for path in OPERATIONS.glob("*/__init__.py")} - set(registry.WITHOUT)
    assert folders <= checked


def test_labels_name_one_job_each():
    labels = [(job.op, job.label) for part in registry.PARTS for job in registry.jobs(part)]
    assert len(labels) == len(set(labels))


def row(x: float, **settings) -> Row:
    return Row("toy", "rqat", x_name="M", x=x, p50=2.0, p20=1.0, p80=3.0, limit_us=1.0, **settings)


def test_rows_are_on_the_disk_before_the_next_one_is_measured(bench, table):
    seen = []

    def work(bench):
        for x in (1, 2, 3):
            seen.append(len(read(table.path)))
            yield row(x)

    runner.run([Job("toy", "rows", 1, work, seconds=0)], bench, table, time.time() + 60)
    assert seen == [0, 1, 2]
    assert len(read(table.path)) == 3


def test_rows_come_back_as_they_were(table):
    first = row(8, config={"shape": "8b.o"}, ratio=4.0, error=1e-3, n_bytes=10, flops=20)
    second = Row("toy", "peer", x=1, note="two\nlines")
    table.add(first)
    table.add(second)
    with table.path.open() as file:
        cells = next(csv.DictReader(file))
    assert tuple(cells) == COLUMNS
    assert cells["fraction_of_limit"] == "0.5"
    assert cells["torch"] == torch.__version__
    back = read(table.path)
    assert back[0] == first
    assert back[1].p50 is None
    assert back[1].note == "two lines"


def test_a_failing_job_gives_its_reason_and_stops_nobody(bench, table):
    def breaks(bench):
        yield row(1)
        raise ZeroDivisionError("no good")

    def absent(bench):
        raise Absent("not written")
        yield

    jobs = [Job("one", "a", 1, breaks, seconds=0), Job("two", "b", 1, absent, seconds=0)]
    jobs.append(Job("three", "c", 1, lambda bench: [row(2)], seconds=0))
    outcome = runner.run(jobs, bench, table, time.time() + 60)
    assert outcome.failed == ["one a", "two b"]
    assert [(r.op, r.x, r.note) for r in read(table.path)] == [
        ("toy", 1, ""),
        ("one", "a", "ZeroDivisionError: no good"),
        ("two", "b", "not there: Absent: not written"),
        ("toy", 2, ""),
    ]


def test_a_red_operation_is_not_timed(bench, table):
    jobs = [
        Job("bad", "check", 1, lambda b: [b.checked("bad", "odd", math.inf, 1e-3)], seconds=0, check=True),
        Job("good", "check", 1, lambda b: [b.checked("good", "odd", 1e-4, 1e-3)], seconds=0, check=True),
        Job("bad", "time", 1, lambda b: [row(1)], seconds=0),
        Job("bad", "more", 1, lambda b: [row(2)], seconds=0),
        Job("good", "time", 1, lambda b: [row(3)], seconds=0),
    ]
    outcome = runner.run(jobs, bench, table, time.time() + 60)
    assert outcome.red == {"bad"}
    rows = read(table.path)
    assert [r.x for r in rows if r.mode != "check"] == ["time", 3]
    assert rows[0].note.startswith("RED")
    assert "not timed" in rows[2].note


def test_jobs_end_within_their_time(bench, table):
    def slow(bench):
        time.sleep(0.2)
        return [row(1)]

    jobs = [Job("toy", str(number), 1, slow, seconds=0.2) for number in range(50)]
    start = time.time()
    outcome = runner.run(jobs, bench, table, start + runner.RESERVE_S + 1.0)
    assert time.time() - start < 3
    assert 1 <= len(read(table.path)) <= 5
    assert len(outcome.left) == 50 - len(read(table.path))


def test_an_interrupted_run_still_says_what_it_did(bench, table):
    def interrupted(bench):
        yield row(1)
        raise KeyboardInterrupt

    jobs = [Job("toy", "a", 1, interrupted, seconds=0), Job("toy", "b", 1, lambda b: [row(2)], seconds=0)]
    outcome = runner.run(jobs, bench, table, time.time() + 60)
    assert outcome.left == ["toy a", "toy b"]
    assert [r.x for r in read(table.path)] == [1]


def test_contenders_take_turns_and_fail_alone(bench):
    order = []

    def breaks(i):
        raise ValueError("cannot")

    ways = {name: Contender(lambda i, name=name: order.append(name)) for name in "ab"}
    timings = interleave({**ways, "broken": Contender(breaks)}, device="cpu", rounds=4, warmup=1)
    assert "".join(order[2:]) == "abbaabba"
    assert timings["a"].ok
    assert timings["a"].p20 <= timings["a"].p50 <= timings["a"].p80
    assert timings["broken"].note == "ValueError: cannot"


def test_one_way_is_timed_by_itself():
    seen = []
    timing = in_graph(seen.append, 3, device="cpu", rounds=5)
    assert timing.ok
    assert seen == [0] * 5


def test_compared_rows_hold_ratio_and_limit(bench):
    contenders = {"bf16": Contender(lambda i: time.sleep(2e-3)), "rqat": Contender(lambda i: time.sleep(1e-3))}

    def missing() -> Contender:
        raise Absent("peer")

    rows = {
        row.provider: row
        for row in bench.compare(
            Row("toy", ""), {**contenders, "peer": missing}, baseline="bf16", limits={"": (1e6, 0.0)}
        )
    }
    assert rows["bf16"].ratio == 1
    assert rows["rqat"].ratio > 1
    assert rows["rqat"].limit_us == pytest.approx(100)
    assert rows["peer"].p50 is None
    assert rows["peer"].note == "Absent: peer"


def test_poison_is_seen():
    with poisoned():
        assert torch.empty(1000).isnan().all()
    assert relative(torch.tensor([1.0, math.nan]), torch.ones(2)) == math.inf
    assert not torch.are_deterministic_algorithms_enabled()


def test_inputs_fill_the_cache_several_times():
    assert copies_for(1 << 20) == 256
    assert copies_for(1 << 30) == 1


def results(folder: Path) -> Path:
    """A part's CSV file with a small sweep."""
    path = folder / "toy-gpu-part1.csv"
    table = Table(path, {**machine(), "gpu_name": "Toy GPU"}, seed=0)
    table.add(Row("ceiling", "device", mode="copy", metric="rate", unit="TB/s", p50=3.0))
    table.add(Row("packed_linear", "rqat", mode="check", metric="error", unit="rel", x="2 bits", p50=1e-3))
    for name in ("qkv", "o", "gate_up", "down"):
        for x in (1, 8):
            where = {"x_name": "M", "x": x, "config": {"shape": f"8b.{name}"}, "p20": 1.0, "p80": 90.0}
            table.add(Row("packed_linear", "cublas bf16", p50=40.0, limit_us=36.0, ratio=1.0, **where))
            table.add(Row("packed_linear", "rqat 2 bits", p50=10.0, limit_us=5.0, ratio=4.0, **where))
    for tokens in (1024, 8192):
        config = {"divergence": "forward", "width": 1024, "teacher": 2560}
        where = {"mode": "full", "x_name": "tokens", "x": tokens, "config": config}
        table.add(Row("linear_kl", "rqat", p50=2000.0, **where))
        table.add(Row("linear_kl", "liger", note="Absent: no", **where))
    table.close()
    return path


def test_the_page_holds_every_figure(tmp_path, monkeypatch):
    results(tmp_path / "out")
    second = Table(tmp_path / "out" / "toy-gpu-part2.csv", machine(), seed=0)
    second.add(Row("optimizer", "rqat", "step", x_name="weights", x=100, p50=5.0, p20=4.0, p80=6.0))
    second.close()
    written = publish.publish(tmp_path / "out", tmp_path / "results")
    assert [path.name for path in written] == ["toy-gpu.csv"]
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    text = page.page()
    assert re.search(r"Toy GPU, \d{4}-\d\d-\d\d, `python kernels/bench/run.py --out DIR`", text)
    assert "| 8b | rqat 2 bits | 4.00 (50%) | 4.00 (50%) |" in text
    assert "| `packed_linear` | 1 | 1.0e-03 | all passed |" in text
    assert "| `linear_kl` | liger | Absent: no | 2 |" in text
    assert "| optimizer step |" in text
    for name in re.findall(r"\]\((performance-[^)]+\.svg)\)", text):
        assert page.plots()[name].startswith("<svg")


def test_the_most_important_figures_stand_beside_their_limits(tmp_path):
    lines = summary.lines(read(results(tmp_path)))
    assert "| M=1: 4.00x, M=8: 4.00x | M=1: 8.0x, M=8: 8.0x | 2.6x |" in lines[0]
    assert len(lines) == 13
    assert all("| not measured |" in line for line in lines[1:])


def test_whole_models_are_published_too(tmp_path):
    out = tmp_path / "out"
    results(out)
    (out / "decode_speed.csv").write_text(
        "gpu,torch,model,bits,head,batch,context,new,provider,tokens_per_s,ms_per_step,slowest_ms,fastest_ms\n"
        'Toy GPU,2,0.6b,2,16,8,512,24,"transformers, bf16",400,20,40,10\n'
        'Toy GPU,2,0.6b,2,16,8,512,128,"engine, 2 bits",8000,1,2,0.8\n'
        'Other GPU,2,0.6b,2,16,8,512,128,"engine, 2 bits",9000,1,2,0.8\n'
        'Toy GPU,2,0.6b,2,4,256,mixed,99,"engine, 2 bits",7000,1,1,1\n'
    )
    facts = {"model": "8b", "gpu": "Toy GPU", "blocks_s": [9.0, 2.0, 4.0], "per_block_s": 3.0, "whole_s": 108.0}
    (out / "gptq-8b.json").write_text(json.dumps(facts))
    (written,) = publish.publish(out, tmp_path / "results")
    decoding = [row for row in read(written) if row.op == "decoding"]
    assert [(row.provider, row.p50, row.p20, row.p80, row.ratio) for row in decoding] == [
        ("transformers bf16", 400, 200, 800, 1),
        ("rqat", 8000, 4000, 10000, 20),
        ("rqat", 7000, 256000, 256000, None),
    ]
    whole = next(row for row in read(written) if row.op == "whole_gptq")
    assert (whole.x, whole.p50, whole.p20, whole.p80) == (36, 108, 72, 144)
    text = "\n".join(summary.lines(read(written)))
    assert "not measured / not measured / 108.0 s" in text
    assert "| 7,000 tok/s (head of 4 bits) |  | 10,000 (A800) |" in text


def test_what_was_not_measured_anew_stays(tmp_path):
    out, kept = tmp_path / "out", tmp_path / "results"
    results(out)
    (written,) = publish.publish(out, kept)
    before = [row.op for row in read(written)]
    here = machine()["torch"]
    for versions, op in ((here, "elsewhere"), ("0.0", "outdated")):
        table = Table(written, {**machine(), "gpu_name": "Toy GPU", "torch": versions}, seed=0, resume=True)
        table.add(Row(op, "rqat", p50=1.0))
        table.close()
    publish.publish(out, kept)
    assert [row.op for row in read(written)] == [*before, "elsewhere"]


def test_the_fastest_cuts_are_published_too(tmp_path):
    out = tmp_path / "out"
    results(out)
    layers = [f"Toy GPU,8b.{name},2,1,{us},{4 * us},1000\n" for name, us in zip("abcd", (1, 2, 3, 4), strict=True)]
    header = "gpu,shape,bits,rows,us,cublas_us,gb_per_s\n"
    (out / "packed_cells.csv").write_text(header + "".join(layers) + "Other GPU,8b.a,2,1,9,9,9\n")
    (written,) = publish.publish(out, tmp_path / "results")
    rows = [row for row in read(written) if "tune" in row.note]
    assert [row.p50 for row in rows if row.provider == "rqat 2 bits"] == [1, 2, 3, 4]
    assert [row.p50 for row in rows if row.provider == "cublas bf16"] == [4, 8, 12, 16]
    assert {row.ratio for row in rows if row.provider == "rqat 2 bits"} == {4}
    assert "M=1: 4.00x" in "\n".join(summary.lines(read(written)))


def test_what_tuning_found_is_added_to_what_kernels_read(tmp_path):
    measured = tmp_path / "measured"
    measured.mkdir()
    assert publish.merge(tmp_path, "toy-gpu", measured) is None
    for found in ({"a": {"block": 1}, "b": {"block": 2}}, {"b": {"block": 3}}):
        (tmp_path / "packed_linear.json").write_text(json.dumps({"configs": found, "thresholds": {"dense": 48}}))
        target = publish.merge(tmp_path, "toy-gpu", measured)
    assert json.loads(target.read_text()) == {
        "packed_linear": {"configs": {"a": {"block": 1}, "b": {"block": 3}}, "thresholds": {"dense": 48}}
    }


def test_without_results_the_page_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert "no results" in page.page()
    assert "python kernels/bench/run.py --out DIR" in page.page()


def test_plots_are_drawn_from_csv_files(tmp_path):
    drawn = plots.draw([results(tmp_path)], tmp_path / "plots")
    assert {path.name for path in drawn} == {"speedup-8b.svg", "linear-kl-speed.svg"}
    svg = (tmp_path / "plots" / "speedup-8b.svg").read_text()
    assert "rqat 2 bits: limit" in svg
    assert "nan" not in svg


def test_the_closing_table_is_short(tmp_path):
    rows = read(results(tmp_path))
    text = compact(rows)
    assert "checks passed: packed_linear 1" in text
    assert "packed_linear forward 8b.o rqat 2 bits| 1:10 50% 4.00x; 8:10 50% 4.00x;" in text
    assert "linear_kl liger: Absent: no (2 times)" in text
    assert len(compact(rows * 500, most=9000)) < 9100


def test_what_is_wrong_is_named_with_its_numbers(bench):
    rows = [bench.checked("toy", what, error, 1e-3) for what, error in (("odd", 0.5), ("even", math.inf))]
    text = compact(rows)
    assert "toy odd: RED: 0.5 is above 0.001" in text
    assert "toy even: RED: inf is above 0.001" in text


def test_names_are_checked(tmp_path):
    command = [sys.executable, ROOT / "kernels" / "bench" / "run.py", "--out", tmp_path, "--small", "--only", "nothing"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 2
    assert "Known: " in result.stderr


@pytest.mark.slow
def test_the_command_writes_a_table_and_plots(tmp_path):
    command = [sys.executable, ROOT / "kernels" / "bench" / "run.py", "--out", tmp_path, "--small", "--minutes", "0.3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["--part", "2", "--only", "latent_step"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = tmp_path.glob("*-part2.csv")
    rows = read(file)
    assert {"ceiling", "latent_step"} == {row.op for row in rows}
    assert any(row.ratio for row in rows)
