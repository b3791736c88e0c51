"""The parts of the comparison with peers that need no peer: cells, resuming, judging, the report."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rqat import Scheme
from rqat.grids import grid_of
from rqat.model.checkpoint import load_checkpoint
from tests.servers.files import last_logits, save_rounded, small_model

from . import measured, ptq_vs_peers
from .autoawq_env import LOGITS, WEIGHTS, differences
from .cells import METHODS, ORIGINAL, OURS, Cell, Result, Results, every
from .environments import PEERS, TORCH
from .judge import check_levels, judged
from .ptq_vs_peers import Comparison, interpreter, result_in, version_of
from .report import as_csv, as_plot, as_table
from .texts import texts

GOOD = {"kl_in": 0.2, "perplexity_in": 8.0, "kl_out": 0.5, "perplexity_out": 30.0}
COST = {"cpu_s": 61.0, "wall_s": 70.0, "peak_bytes": 1_500_000_000}


def test_a_width_comes_after_the_other() -> None:
    found = [str(cell) for cell in every(["rqat-rtn", "gptqmodel"], [3, 2], 64)]
    assert found == ["rqat-rtn-w3g64", "gptqmodel-w3g64", "rqat-rtn-w2g64", "gptqmodel-w2g64"]


@pytest.mark.parametrize(
    ("text", "word"), [("gptq:w3", "no method"), ("rqat-gptq:w5", "no width"), ("rqat-gptq", "no")]
)
def test_a_cell_that_is_none_says_why(text: str, word: str) -> None:
    assert Cell.parse("rqat-gptq:w3", 64) == Cell("rqat-gptq", 3, 64)
    with pytest.raises(ValueError, match=word):
        Cell.parse(text, 64)


def test_every_peer_has_a_script_and_the_same_torch() -> None:
    for name, peer in PEERS.items():
        assert TORCH in peer.packages, name
        assert (Path(ptq_vs_peers.__file__).parent / peer.probe).exists()
    assert {method.tool for method in METHODS.values()} == {OURS, *PEERS}


def test_a_cell_counts_for_what_it_was_asked_alone(tmp_path: Path) -> None:
    cell, results = Cell("gptqmodel", 3, 64), Results(tmp_path, {"model": "m", "tokens": "a", "threads": 1})
    asked = results.asked(cell, "7.6.0")
    assert results.find(cell, asked) is None
    results.keep(cell, asked, GOOD | COST)
    assert results.find(cell, asked) == {"asked": asked, **GOOD, **COST}
    assert results.find(cell, results.asked(cell, "7.7.0")) is None
    others = Results(tmp_path, {"model": "m", "tokens": "b", "threads": 1})
    assert others.find(cell, others.asked(cell, "7.6.0")) is None
    assert list(others.all()) == []
    (tmp_path / "gptqmodel-w3g64.json").write_text('{"asked": ')  # cut off
    assert results.find(cell, asked) is None


def test_what_was_ended_goes_on_and_what_failed_is_tried_again_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make(self: Comparison, cell: Cell) -> Result:
        made.append(str(cell))
        if cell.bits == 2 and made.count(str(cell)) == 1:
            return {"failed": "status 1: no memory"}
        return GOOD if cell == ORIGINAL else GOOD | COST

    monkeypatch.setattr(Comparison, "_made", make)
    monkeypatch.setattr(ptq_vs_peers, "packed", lambda model, path, rows: [[1, 2]] * rows)
    cells, said = every(["rqat-rtn"], [3, 2], 64), list[str]()
    for again in (False, False, True):
        Comparison(tmp_path / "model", tmp_path / "work", tmp_path).run(cells, again=again, say=said.append)
    assert made == ["original", "rqat-rtn-w3g64", "rqat-rtn-w2g64", "rqat-rtn-w2g64"]
    assert said[2] == said[5] == "rqat-rtn-w2g64: status 1: no memory"
    assert said[8] == "rqat-rtn-w2g64: KL 0.2000 / 0.5000"
    assert len((tmp_path / "work" / "comparison.csv").read_text().splitlines()) == 1 + 3
    Comparison(tmp_path / "model", tmp_path / "work", tmp_path, device="cuda").run([], say=said.append)
    assert made[4:] == ["original"], "what was made on another device is another result"


def test_a_change_of_our_sources_is_measured_and_a_peer_goes_by_its_version() -> None:
    names = [name for name, method in METHODS.items() if method.tool == OURS]
    assert len({version_of(Cell(name, 3, 64)) for name in names}) == len(names) > 3
    assert version_of(Cell("rqat-gptq", 3, 64)) == version_of(Cell("rqat-gptq", 2, 64))
    assert version_of(Cell("auto-round-20", 3, 64)) == PEERS["auto-round"].version


def test_the_last_words_of_a_script_without_a_result() -> None:
    assert result_in('noise\nRESULT {"cpu_s": 1.0}\nbye\n', 0) == {"cpu_s": 1.0}
    assert result_in('RESULT {"cpu_s": 1.0}\nSegmentation fault\n', 139) == {"failed": "status 139: Segmentation fault"}
    assert result_in("", 1) == {"failed": "status 1: no word"}


def test_what_is_not_built_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.servers.environments.ROOT", tmp_path)
    assert interpreter("auto-round")[0] is None
    assert interpreter(OURS)[0] is not None


def test_here_a_peer_is_what_this_interpreter_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"auto-round": "0.16.0"}
    monkeypatch.setattr(ptq_vs_peers, "version_here", installed.get)
    assert interpreter("auto-round", here=True) == (Path(sys.executable), PEERS["auto-round"])
    assert interpreter("gptqmodel", here=True)[0] is None
    assert version_of(Cell("auto-round", 3, 64), here=True) == "0.16.0"
    assert version_of(Cell("rqat-gptq", 3, 64), here=True) == version_of(Cell("rqat-gptq", 3, 64))


def test_a_cell_that_takes_too_long_or_cannot_be_judged_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptq_vs_peers, "packed", lambda model, path, rows: [[1, 2]] * rows)
    monkeypatch.chdir(tmp_path)
    comparison = Comparison(Path("model"), Path("work"), tmp_path, limit_s=0.01)
    assert (comparison.model, comparison.work) == (tmp_path / "model", tmp_path / "work"), "scripts run elsewhere"
    cell = Cell("rqat-rtn", 3, 64)
    assert comparison._made(cell)["failed"] == "stopped after 0.01 s"

    def left_as_it_was(self: Comparison, cell: Cell, job: dict[str, Any]) -> Result:
        small_model().save_pretrained(job["folder"])
        return dict(COST)

    small_model().save_pretrained(comparison.model)
    monkeypatch.setattr(Comparison, "_quantized", left_as_it_was)
    found = comparison._made(cell)
    assert found["failed"].startswith("not judged: model.layers.0.self_attn.q_proj has 64 values")
    assert found.keys() > COST.keys()
    assert not (tmp_path / "work" / "models" / str(cell)).exists()


def test_memory_of_a_gpu_is_that_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    found = dict[str, float]()
    with measured.measured(found, "cuda"):
        assert waited == ["cuda"], "what was begun before does not count"
    assert (waited, found["peak_bytes"]) == (["cuda", "cuda"], 7)
    assert found["host_bytes"] > 1e6
    with measured.measured(found, "cpu"):
        pass
    assert found["peak_bytes"] > 1e6


def results() -> list[Result]:
    def one(name: str, bits: int, **figures: object) -> Result:
        asked = {"name": name, "bits": bits, "group": 64, "model": "m", "version": "1", "settings": {}}
        return {"asked": asked, **figures}

    return [
        one("original", 16, kl_in=0.0, perplexity_in=6.7, kl_out=0.0, perplexity_out=25.0),
        one("rqat-gptq", 3, **GOOD, **COST),
        one("gptqmodel", 3, **GOOD | {"kl_in": 0.4, "perplexity_in": 3e5}, **COST),
        one("auto-round", 3, failed="status 1: a | b"),
    ]


def test_table_csv_and_plot_hold_what_was_found() -> None:
    lines = as_table(results()).splitlines()
    assert lines[2:] == [
        "| 16 | original | 0 | 6.7 | 0 | 25 | | | |",
        "| 3 | rqat-gptq | **0.2** | 8 | **0.5** | 30 | 61 | 70 | 1.50 GB |",
        "| 3 | gptqmodel | 0.4 | 3e+05 | **0.5** | 30 | 61 | 70 | 1.50 GB |",
        "| 3 | auto-round | failed: status 1: a / b | | | | | | |",
    ]
    assert as_csv(results()).splitlines()[2].startswith("m,rqat-gptq,3,64,1,0.2,8.0,0.5,30.0,,61.0,70.0,1500000000,,")
    assert "**" not in as_table(results()[:2]), "the only one is not the best"
    asked = [each | {"accuracy": 0.125} for each in results()[:2]] + results()[2:]
    lines = [line.split("|") for line in as_table(asked).splitlines()]
    assert {len(line) for line in lines} == {12}
    assert [line[7].strip() for line in lines] == ["GSM8K", "---", "12.5%", "12.5%", "", ""]
    plot = as_plot(results())
    assert plot.count("<circle") == 2 + 2 * 2  # the key, and two cells with figures
    assert "w3 gptqmodel" in plot
    assert as_plot([]).startswith("<svg")


def test_texts_are_problems_with_answers_or_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    (tmp_path / "b.txt").write_text(" = Heading =\n\n" + " word" * 30 + " \n")
    assert list(texts(tmp_path / "a.jsonl")) == ["1 + 1?\n2"]
    assert list(texts(tmp_path / "b.txt")) == [("word " * 30).strip()]


def test_judged_by_divergence_and_perplexity(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "model")
    rows = {"in": [[5, 7, 9, 11, 13]], "out": [[6, 8, 10, 12, 14], [1, 2, 3, 4, 5]]}
    original, other = (AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval() for _ in range(2))
    found = judged(original, original, rows, tmp_path / "kept.safetensors")
    assert found["kl_in"] == pytest.approx(0, abs=1e-6)
    assert judged(original, None, rows, tmp_path / "kept.safetensors") == pytest.approx(found, abs=1e-6)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
        ids = torch.tensor(rows["out"])
        log_p, log_q = (each(input_ids=ids).logits[:, :-1].double().log_softmax(-1) for each in (original, other))
    found = judged(original, other, rows, tmp_path / "kept.safetensors")
    divergence = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    surprise = -float(log_q.gather(-1, ids[:, 1:, None]).mean())
    assert divergence > 0.01
    assert found["kl_out"] == pytest.approx(divergence, rel=1e-4)
    assert found["perplexity_out"] == pytest.approx(math.exp(surprise), rel=1e-4)


def test_a_layer_that_was_left_out_is_no_result() -> None:
    model = small_model()
    grid = grid_of(Scheme.parse("w2g64"))
    weights = [module.weight.data for name, module in model.named_modules() if "proj" in name]
    for weight in weights:
        weight.copy_(grid.decode_layer(grid.quantize_layer(weight, *grid.fit_layer(weight))))
    check_levels(model, 2, 64)
    weights[-1][0, :5] += torch.arange(5) * 1e-4
    with pytest.raises(ValueError, match="down_proj has"):
        check_levels(model, 2, 64)


def test_what_autoawq_makes_of_a_file_is_compared_with_what_it_means(tmp_path: Path) -> None:
    start = save_rounded(tmp_path / "start", "w4g128", "llama")
    weights = {name: grid_of(layer.scheme).decode_layer(layer) for name, layer in load_checkpoint(start).layers.items()}
    answer = {"weights": tmp_path / "weights.safetensors", "logits": last_logits(start).tolist()}
    save_file({name: weight.half() for name, weight in weights.items()}, answer["weights"])
    found = differences(answer, start)
    assert 0 < found["weights"] <= WEIGHTS
    assert found["logits"] == 0
    save_file({name: weight.flip(0) for name, weight in weights.items()}, answer["weights"])
    assert differences(answer | {"logits": last_logits(start).flip(1).tolist()}, start)["logits"] > LOGITS
    assert differences(answer, start)["weights"] > 1
    save_file({name: weight for name, weight in weights.items() if "q_proj" not in name}, answer["weights"])
    with pytest.raises(ValueError, match="other layers"):
        differences(answer, start)
