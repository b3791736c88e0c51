"""Kinds of files that are read by a whole command: what it writes is looked at, too.

A command ends with 0, or with 2 and a folder that is as it was. Each input takes a second or so, so fewer are tried.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

from transformers import TrainerState
from typer.testing import CliRunner

from rqat.cli.app import build
from rqat.errors import RqatError
from rqat.train.saving import Saving
from tests.tiny import save_tiny

from .kinds import Bench, Kind
from .mutate import mutated_bytes, mutated_json, mutated_lines, mutated_safetensors

QUANTIZE = "name: mine\nmodel: {model}\nscheme: w4g64\nquantize: rtn\nexport: null\n"
EVALUATE = "evaluate: [{{task: arith, limit: 2, max_new_tokens: 4}}]\n"
TRAIN = "train: [{{objective: sft, data: arith, steps: 3, batch: 2, max_tokens: 512, save_every: 1}}]\n"
START = "name: mine\nmodel: {model}\nscheme: w4g64\nstart: {start}\nexport: null\n" + EVALUATE

SHARE = 0.04
"""Of the inputs that other kinds get."""


class Stopped(Exception):
    """In place of whatever ends a process."""


class Commands:
    """Kinds of files, over runs that are made once."""

    def __init__(self, bench: Bench) -> None:
        self.folder = bench.folder
        self.model = save_tiny(bench.folder / "plain")
        self.finished = self._made("finished", QUANTIZE + EVALUATE)
        self.interrupted = self._made("interrupted", QUANTIZE + TRAIN, interrupted=True)
        [self.quantized] = self.finished.glob("run/*-quantize-rtn")
        [self.evaluated] = self.finished.glob("run/*-arith-bf16")
        [self.checkpoint] = self.interrupted.glob("run/*.partial/.resume/**/checkpoint-2")

    def kinds(self) -> dict[str, Kind]:
        """By name: the command, and what it reads."""
        model, json_file = self.model, mutated_json
        made = {
            "quantize-config": (model / "config.json", json_file, self._quantize),
            "quantize-tokenizer": (model / "tokenizer.json", json_file, self._quantize),
            "quantize-tokenizer_config": (model / "tokenizer_config.json", json_file, self._quantize),
            "quantize-weights": (model / "model.safetensors", mutated_safetensors, self._quantize),
            "start-config": (self.quantized / "config.json", json_file, self._start),
            "start-manifest": (self.quantized / "manifest.json", json_file, self._start),
            "start-codes": (self.quantized / "quantized.safetensors", mutated_safetensors, self._start),
            "start-weights": (self.quantized / "model.safetensors", mutated_bytes, self._start),
            "finished-manifest": (self.quantized / "manifest.json", json_file, self._again(self.finished)),
            "finished-results": (self.evaluated / "manifest.json", json_file, self._again(self.finished)),
            "finished-samples": (self.evaluated / "samples.jsonl", mutated_lines, self._again(self.finished)),
            "finished-summary": (self.finished / "run" / "summary.json", json_file, self._again(self.finished)),
            "resumed-state": (self.checkpoint / "state.json", json_file, self._again(self.interrupted)),
            "resumed-counters": (self.checkpoint / "trainer_state.json", json_file, self._again(self.interrupted)),
            "resumed-index": (
                self.checkpoint / "model.safetensors.index.json",
                json_file,
                self._again(self.interrupted),
            ),
            "resumed-log": (
                next(self.interrupted.rglob("training.jsonl")),
                mutated_lines,
                self._again(self.interrupted),
            ),
        }
        found = {}
        for name, (path, mutate, read) in made.items():
            good = path.read_bytes()
            text = path.suffix in (".json", ".jsonl")
            found[name] = Kind(good.decode() if text else good, mutate, self._with(path, read), SHARE)
        return found

    # --------------------------------------------------------------------------------------------- commands

    def _quantize(self, place: Path, replaced: Path) -> None:
        command = ["quantize", str(place / "model"), "--method", "rtn", "--scheme", "w4g64", "-o", str(place / "out")]
        _replace(self.model, place / "model", replaced, place / "input")
        _checked(command, place)

    def _start(self, place: Path, replaced: Path) -> None:
        _replace(self.quantized, place / "start", replaced, place / "input")
        recipe = place / "mine.yaml"
        recipe.write_text(START.format(model=self.model, start=place / "start"))
        # The copy of what is started from is a step of its own, and stays where a later one refuses what is in it.
        _checked(["qat", "--recipe", str(recipe), "-o", str(place / "run")], place, moves=True)

    def _again(self, before: Path) -> Callable[[Path, Path], None]:
        def reading(place: Path, replaced: Path) -> None:
            _replace(before / "run", place / "run", replaced, place / "input")
            # What is not as it was written is set aside first, so that even a refusal may move files.
            _checked(["qat", "--recipe", str(before / "mine.yaml"), "-o", str(place / "run")], place, moves=True)

        return reading

    def _with(self, replaced: Path, read: Callable[[Path, Path], None]) -> Callable[[Path], None]:
        return lambda path: read(path.parent, replaced)

    def _made(self, name: str, recipe: str, *, interrupted: bool = False) -> Path:
        """A run; interrupted before the third step of its training."""
        place = self.folder / name
        place.mkdir()
        (place / "mine.yaml").write_text(recipe.format(model=self.model))
        command = ["qat", "--recipe", str(place / "mine.yaml"), "-o", str(place / "run")]

        def stop(saving: Saving, args: object, state: TrainerState, *_: object, **more: object) -> None:
            if state.global_step == 2:
                raise Stopped

        with mock.patch.object(Saving, "on_step_begin", stop):
            done = CliRunner().invoke(build(), command)
        assert isinstance(done.exception, Stopped) if interrupted else done.exit_code == 0, done.output
        return place


def _replace(source: Path, copy: Path, replaced: Path, by: Path) -> None:
    """A copy of a folder in which one file is another."""
    shutil.copytree(source, copy)
    shutil.copyfile(by, copy / replaced.relative_to(source))


def _checked(command: list[str], place: Path, *, moves: bool = False) -> None:
    """Gives a command.

    Raises:
        RqatError: it was refused, and nothing was written.
        AssertionError: something else than 0 or 2 came of it, or it was refused and has written all the same.
    """
    before = _written(place)
    done = CliRunner().invoke(build(), command)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    told = [line for line in done.output.splitlines() if line.startswith("Error")]
    assert done.exit_code in (0, 2), f"exit code {done.exit_code}: {done.output[-1000:]}"
    assert "Traceback" not in done.output, done.output[-1000:]
    if done.exit_code == 2:
        assert told, done.output[-1000:]
        left = [] if moves else sorted(_written(place).items() ^ before.items())
        assert not left, f"refused, and has written {left[:3]}: {told[0]}"
        raise RqatError(told[0])


def _written(place: Path) -> dict[str, str]:
    """Digest of every file but locks."""
    found = {}
    for path in place.rglob("*"):
        with suppress(OSError):
            if path.is_file() and path.name != ".lock":
                found[str(path.relative_to(place))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
