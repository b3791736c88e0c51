"""A process with everything imported that does one `rqat` command after the other, each in a fork of itself.

Started with `changes.c` preloaded. It reads an order a line, as JSON, and answers each with a line:

    {"argv": [...], "folder": "...", "log": "...", "notes": "...", "kill_after": 0, "fail_from": 0, "fail_code": 0,
     "copies": "", "signal": 0, "after_s": 0}
    {"code": 0, "changes": 17, "writes": 40, "points": [0, 0, 1, ...], "cpu_s": 2.1}

What a command had to import, and what it compiled, the server imports before the next one: a fork then begins with its
work. What is imported is frozen for the garbage collector, which would else write to every page of it in every fork.

A signal is sent when the command has had `after_s` seconds of a processor, so that it is as far as it would be at any
other time, whatever else the machine does. `notes` gets a line for every step of a run that begins, and for every
update of a training. With `copies`, the folder is copied into a folder there after every change, and `points` says how
many notes there were by then.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    """Imports, says so, and does what it is told until its input ends."""
    import_everything()
    preloaded = ctypes.CDLL(os.environ.pop("LD_PRELOAD"))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(done(preloaded, json.loads(line))), flush=True)


def import_everything() -> None:
    """Most of what a command would import; the rest is known when the first has ended, see `learn`."""
    import datasets  # noqa: F401
    import trl  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM  # noqa: F401
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401

    import rqat.api
    import rqat.cli.app
    import rqat.report.page
    from rqat.registry import BUILTIN  # noqa: F401
    from rqat.stages import stages, work_of

    for name in stages():
        work_of(name)
    rqat.cli.app._prepare_environment(offline=True, verbose=False)
    rqat.report.page._templates().get_template("report.html.j2")
    freeze()


def learn(names: list[str]) -> None:
    """Imports what a command has imported; what it read from a file by its path has no name to be imported by.

    Sources of plugins are parsed, too, for what they import: that is remembered by what a source holds.
    """
    from rqat.facts import source_fact

    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)
            if name.startswith("rqat_"):
                source_fact(name)
    freeze()


def freeze() -> None:
    """Takes all objects there are out of garbage collection."""
    gc.collect()
    gc.freeze()


def done(preloaded: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Does one command in a fork and waits for it."""
    asks, ask = os.pipe()
    answer, answers = os.pipe()
    counts, count = os.pipe()
    child = os.fork()
    if not child:
        for end in (asks, answers, counts):
            os.close(end)
        work(preloaded, order, ask, answer, count)
    for end in (ask, answer, count):
        os.close(end)
    points = copied(order, asks, answers) if order.get("copies") else []
    if order.get("signal"):
        wait_for(child, order["after_s"])
        os.kill(child, order["signal"])
    told = b"".join(iter(lambda: os.read(counts, 4096), b""))  # up to the end of the child
    _, status, usage = os.wait4(child, 0)
    for end in (asks, answers, counts):
        os.close(end)
    changes, writes, imported = json.loads(told) if told else (0, 0, [])
    if imported:
        learn(imported)
    answer = {"code": os.waitstatus_to_exitcode(status), "changes": changes, "writes": writes, "points": points}
    return {**answer, "cpu_s": usage.ru_utime + usage.ru_stime}


def wait_for(child: int, cpu_s: float) -> None:
    """Until a child has had a processor for so many seconds, or has ended."""
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not os.waitid(os.P_PID, child, ended) and time.clock_gettime(clock_of(child)) < cpu_s:
        time.sleep(0.001)


def clock_of(process: int) -> int:
    """The clock of the processor time of a process, as Linux numbers it (clock_getcpuclockid)."""
    return (~process << 3) | 2


def copied(order: dict[str, Any], asks: int, answers: int) -> list[int]:
    """Copies the folder whenever the child has changed something; how many notes there were each time."""
    points = []
    folder, notes = Path(order["folder"]), Path(order["notes"])
    while select.select([asks], [], [])[0] and os.read(asks, 1):
        points.append(len(notes.read_text().splitlines()) if notes.exists() else 0)
        copy = Path(order["copies"]) / f"{len(points):04}"
        copy.mkdir()
        if folder.exists():
            shutil.copytree(folder, copy / folder.name, copy_function=shutil.copy2)
        os.write(answers, b"1")
    return points


def work(preloaded: Any, order: dict[str, Any], ask: int, answer: int, count: int) -> None:
    """In the fork: the command, as it would be from a shell. Never returns."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code, there = 1, set(sys.modules)
    try:
        noted(order["notes"], preloaded)
        sys.argv = ["rqat", *order["argv"]]
        fails = (order.get("kill_after", 0), order.get("fail_from", 0), order.get("fail_code", 0))
        ends = (ask, answer) if order.get("copies") else (-1, -1)
        long = ctypes.c_long
        preloaded.campaign_arm(order["folder"].encode(), long(fails[0]), long(fails[1]), fails[2], *ends)
        from rqat.cli.app import main as rqat

        rqat()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    imported = [name for name in sys.modules if name not in there]
    os.write(count, json.dumps([preloaded.campaign_changes(), preloaded.campaign_writes(), imported]).encode())
    os._exit(code)


def noted(file: str, preloaded: Any) -> None:
    """Has every step of a run, with the writes before it, and every update of a training leave a line in `file`."""
    from rqat import pipeline
    from rqat.train.saving import Saving

    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    run_stage, update = pipeline.run_stage, Saving.on_pre_optimizer_step

    def stage(job: Any, step: Any) -> Any:
        os.write(handle, f"step {step.name} {preloaded.campaign_writes()}\n".encode())
        return run_stage(job, step)

    def updated(self: Any, args: Any, state: Any, control: Any, **given: Any) -> Any:
        os.write(handle, f"update {self.folder.parent.stem} {state.global_step + 1}\n".encode())
        return update(self, args, state, control, **given)

    pipeline.run_stage = stage
    Saving.on_pre_optimizer_step = updated  # type: ignore[method-assign]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which `nohup` had ignored, as rqat then does
    main()
