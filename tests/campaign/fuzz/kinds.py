"""What is fuzzed: for every kind of file a good one, how it is changed, and the reading of it within this process.

A reading either ends well or with an `RqatError`, whose exit code is 2; anything else that it raises is a traceback for
a user. It writes nothing: what it makes lies in a folder that is compared.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rqat.generation.prompts import encode_prompts
from rqat.generation.sampling import end_tokens
from rqat.keys import ModelKeys
from rqat.model.config import check_quantizable, read_config
from rqat.model.extras import check_checkpoint, remarks
from rqat.model.load import load_model, load_tokenizer
from rqat.packed.load import why_not_packed
from rqat.plan import build_plan
from rqat.preflight import preflight
from rqat.recipe import load_recipe
from rqat.registry import Registry
from rqat.run_folder import fates
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

from .mutate import Mutate, mutated_bytes, mutated_json, mutated_lines, mutated_safetensors, mutated_text

RECIPE = """name: mine
model: MODEL
scheme: {default: w4g64, "*.down_proj": w3g64}
calibration: {source: arith, samples: 4, tokens: 32}
quantize: {method: gptq, damp: 0.02}
train:
  - objective: kd
    data: {source: arith, split: train}
    steps: 4
    lr: 1e-5
  - {objective: grpo, data: arith, task: arith, steps: 2, batch: 8, rewards: {correct: 1.0}}
export: {format: compressed-tensors}
evaluate: [arith, {task: arith, limit: 3}]
"""
SETTING = "train.0.lr=1e-4"
ROWS = '{"prompt": "1+1=", "completion": "2", "answer": "2"}\n{"text": "some text"}\n{"prompt": "a", "answer": 3}\n'
PROBLEMS = '{"problem": "1+1=", "answer": "2"}\n{"problem": "3", "answer": "\\\\frac12", "level": 1}\n'
TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}\n{{ messages[0]['content'] }}\n{%- endif %}\n"
    "{%- for m in messages %}\n<{{ m['role'] }}>{{ m.content | trim }}\n{%- endfor %}\n"
    "{{ strftime_now('%d %b') }}\n{% if add_generation_prompt %}<a>{% endif %}\n"
)
QUANTIZED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
QUANTIZED |= {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 64}}}}


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        good: a file that is read well.
        mutate: changes it.
        read: reads one that lies at the given path.
        share: of the usual number of inputs.
    """

    good: Any
    mutate: Mutate
    read: Callable[[Path], Any]
    share: float = 1.0


class Bench:
    """The kinds, over a model and a run that are made once in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry.discover()
        self.model = save_tiny(folder / "model", context=64)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(self.model)
        self.loaded = tiny_model()

    def kinds(self) -> dict[str, Kind]:
        files = {name: (self.model / name).read_text() for name in ("config.json", "generation_config.json")}
        quantized = json.dumps(json.loads(files["config.json"]) | {"quantization_config": QUANTIZED})
        return {
            "recipe": Kind(RECIPE.replace("MODEL", str(self.model)), mutated_text, self._recipe),
            "set": Kind(SETTING, lambda text, rng: mutated_bytes(text.encode(), rng), self._set),
            "jsonl": Kind(ROWS, mutated_lines, self._rows),
            "parquet": Kind(self._parquet(), mutated_bytes, self._hub),
            "problems": Kind(PROBLEMS, mutated_lines, self._problems),
            "config": Kind(files["config.json"], mutated_json, self._beside("config.json", self._look)),
            "quantization_config": Kind(quantized, mutated_json, self._beside("config.json", self._opened)),
            "generation_config": Kind(
                files["generation_config.json"], mutated_json, self._beside("generation_config.json", self._ends)
            ),
            "tokenizer": Kind(
                (self.model / "tokenizer.json").read_text(), mutated_json, self._beside("tokenizer.json", self._tokens)
            ),
            "template": Kind(TEMPLATE, mutated_text, self._template),
            "safetensors": Kind(
                (self.model / "model.safetensors").read_bytes(),
                mutated_safetensors,
                self._beside("model.safetensors", self._look),
            ),
            "manifest": Kind(self._manifest(), mutated_json, self._run("01-calibrate", "manifest.json")),
            "step": Kind('{"fingerprint": "abc"}', mutated_json, self._run("01-calibrate.partial", ".step.json")),
            "results": Kind(self._results(), mutated_lines, self._report),
        }

    # ------------------------------------------------------------------------------------------- readings

    def _recipe(self, path: Path) -> None:
        plan = build_plan(load_recipe(str(path)), self.registry)
        preflight(plan, folder=path.parent / "run", offline=True)

    def _set(self, path: Path) -> None:
        recipe = path.with_name("good.yaml")
        recipe.write_text(RECIPE.replace("MODEL", str(self.model)))
        text = path.read_bytes().decode(errors="surrogateescape")
        preflight(build_plan(load_recipe(str(recipe), [text]), self.registry), offline=True)

    def _rows(self, path: Path) -> None:
        rows = self._source("jsonl", path=str(path.rename(path.with_suffix(".jsonl"))))
        encode_prompts([row for row in rows if "prompt" in row], tiny_tokenizer())

    def _hub(self, path: Path) -> None:
        path = path.rename(path.with_suffix(".parquet"))
        self._source("hub", name=str(path.parent))

    def _source(self, part: str, **options: Any) -> list[Any]:
        card = self.registry.card("source", part)
        source = self.registry.make(card, self.registry.options(card, options, "data"))
        return list(source.rows("train", 0))

    def _problems(self, path: Path) -> None:
        card = self.registry.card("task", "math500")
        task = self.registry.make(card, self.registry.options(card, {"data": str(path)}, "evaluate"))
        encode_prompts(list(task.problems()), tiny_tokenizer())

    def _look(self, folder: Path) -> None:
        keys = ModelKeys(path=str(folder))
        config = read_config(keys, offline=True)
        list(remarks(config))
        check_checkpoint(config)
        check_quantizable(config)
        config.vocabulary(offline=True)
        load_model(keys, offline=True)

    def _opened(self, folder: Path) -> None:
        config = read_config(ModelKeys(path=str(folder)), offline=True)
        list(remarks(config))
        check_checkpoint(config)
        why_not_packed(config)
        load_model(config.keys, offline=True, quantizable=False)

    def _ends(self, folder: Path) -> None:
        config = read_config(ModelKeys(path=str(folder)), offline=True)
        list(remarks(config))
        model, tokenizer = load_model(config.keys, offline=True)
        end_tokens(model, tokenizer)

    def _tokens(self, folder: Path) -> None:
        keys = ModelKeys(path=str(folder))
        read_config(keys, offline=True).vocabulary(offline=True)
        encode_prompts([{"prompt": "1+1="}], load_tokenizer(keys, offline=True))

    def _template(self, path: Path) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = path.read_bytes().decode(errors="replace")
        encode_prompts([{"prompt": "1+1="}, {"prompt": "2", "system": "be brief"}], tokenizer)

    def _beside(self, name: str, read: Callable[[Path], None]) -> Callable[[Path], None]:
        """Reads a model one of whose files is the one given."""

        def reading(path: Path) -> None:
            with self._copy(path.parent / "model") as folder:
                (folder / name).unlink()
                shutil.copyfile(path, folder / name)
                read(folder)

        return reading

    @contextmanager
    def _copy(self, folder: Path) -> Iterator[Path]:
        folder.mkdir()
        for path in self.model.iterdir():
            (folder / path.name).symlink_to(path)
        yield folder

    def _run(self, step: str, name: str) -> Callable[[Path], None]:
        """What becomes of a run folder one of whose files is the one given."""

        def reading(path: Path) -> None:
            folder = path.parent / "run"
            (folder / step).mkdir(parents=True)
            shutil.copyfile(path, folder / step / name)
            fates(self._plan, folder)

        return reading

    @cached_property
    def _plan(self) -> Any:
        """A plan whose steps have their fingerprints ready: they take longer than all else here."""
        recipe = self.folder / "good.yaml"
        recipe.write_text(RECIPE.replace("MODEL", str(self.model)))
        plan = build_plan(load_recipe(str(recipe)), self.registry)
        facts, prints = {step.name: plan.facts(step) for step in plan.steps}, plan.fingerprints()
        return SimpleNamespace(steps=plan.steps, facts=lambda step: facts[step.name], fingerprints=lambda: prints)

    def _report(self, path: Path) -> None:
        from rqat.report.page import page
        from rqat.report.planned import read_plan
        from rqat.report.run_files import RunFiles, StepFiles
        from rqat.report.summary import summary_of

        folder = path.parent / "step"
        folder.mkdir()
        shutil.copyfile(path, folder / "samples.jsonl")
        shutil.copyfile(path, folder / "training.jsonl")
        results = {
            "task": "arith",
            "accuracy": 0.5,
            "n": 2,
            "low": 0.1,
            "high": 0.9,
            "seconds": 1.0,
            "prompt_hash": "x",
        }
        steps = [
            StepFiles(f"0{number}", folder, "evaluate", variant, 1.0, {}, results, {"results": results})
            for number, variant in enumerate(("bf16", "gptq"))
        ]
        recipe = {"model": {"path": "m"}}
        run = RunFiles(path.parent, "mine", "w4g64", recipe, "cpu", steps, read_plan(path.parent))
        page(run, summary_of(run), {"told": [], "rqat": "0", "packages": {}, "machine": {}})

    # ------------------------------------------------------------------------------------------- good files

    def _parquet(self) -> bytes:
        import pyarrow
        import pyarrow.parquet

        path = self.folder / "good.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["1+1="] * 3, "answer": ["2", "3", "4"]}), path)
        return path.read_bytes()

    def _manifest(self) -> str:
        facts = {"settings": {"samples": 4}, "parts": {"source": {"name": "arith", "options": {}}}}
        return json.dumps({"fingerprint": "abc", "facts": facts, "files": {"a.json": "0" * 64}, "results": {}})

    def _results(self) -> str:
        row = {"index": 0, "seed": 0, "prompt": "1+1=", "completion": "2", "answer": "2", "verdict": "correct"}
        row |= {"step": 1, "loss": 0.5, "tokens": 3}
        return "\n".join(json.dumps(row | {"index": index, "step": index}) for index in range(3))
