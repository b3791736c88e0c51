"""Runs a task on a model, and says how sure the result is.

`run_task` runs a task of rqat; `lm_eval_tasks.py` runs tasks that lm-eval brings. Finished batches are saved, so that a
long evaluation resumes where it was interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contracts import Comparison, Completion, Row, Task, TaskOptions, Verdict
from ..errors import DataError
from ..generation.complete import Batch, Generator, Report, complete_all, pace_of, plan_batches
from ..generation.prompts import Prompt, encode_prompts, prompt_hash
from ..generation.sampling import Sampling, context_length
from ..generation.writer import Writer
from ..processes import Processes
from ..storage import LONE
from .saved import Finished, Saved, Unit
from .stats import bootstrap, pass_at_k, wilson

if TYPE_CHECKING:
    import transformers

    from ..generation.server_writer import ServedModel

LOOK_S = 0.2
"""Seconds between two looks of the first process at what others have finished, when it has nothing left to write."""


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        results: figures, as written to `results.json`.
        samples: one row per completion, as written to `samples.jsonl`.
    """

    results: dict[str, Any]
    samples: list[dict[str, Any]] = field(default_factory=list)


def run_task(
    task: Task,
    name: str,
    model: transformers.PreTrainedModel | ServedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    *,
    limit: int | None = None,
    batch: int = 32,
    partial: Path | None = None,
    stream: Path | None = None,
    report: Report | None = None,
    writer: Writer | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Asks a model every problem of a task, once per seed, and grades what it writes.

    In several processes all call it, each with the whole model, and write every N-th batch each, or every N-th problem
    where the writer draws for each by itself: with the same random numbers as one process alone.

    Args:
        name: of the task.
        limit: use the first `limit` problems only.
        batch: prompts completed together.
        partial: file that finished batches are appended to, and read from when an evaluation resumes; every process has
            one of its own beside it (see `saved`).
        stream: file that every graded completion is added to as it comes; written anew, by the first process.
        report: receives how many of `number_of_completions(task, limit)` completions are done, and the accuracy so far
            with its interval.
        writer: what writes with the model; None is transformers. Batches that another one finished are not taken.
        processes: those that write together; None is this one alone.

    Returns:
        the whole evaluation, in the first process; in others, nothing.

    Raises:
        DataError: no problems, or a prompt that does not fit into the model's context.
        ModelError: out of memory.
        RunError: processes do not do the same work.
    """
    options = task.options
    if isinstance(task, Comparison):
        raise DataError(f"'{name}' compares two models.", hint=f"Run: rqat eval {name} MODEL --original ORIGINAL")
    problems = [_with_settings(problem, options) for problem in list(task.problems())[:limit]]
    if not problems:
        raise DataError(f"The task '{name}' has no problems.", hint="Check its options.")
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p)
    prompts = encode_prompts(
        problems, tokenizer, options.chat, lambda index: problems[index].get("place") or f"Problem {index}"
    )
    batches, notes = plan_batches(prompts, batch, sampling, context_length(model))
    generator = Generator(model, tokenizer, sampling, writer)
    processes, seeds = processes or Processes(), _seeds(task)
    saved = Saved(partial, generator.writer.name, processes)
    asked = _Asked(task, problems, prompts, stream if processes.leads else None, report)
    began = time.perf_counter()
    _Run(generator, [(seed, batch) for seed in seeds for batch in batches], saved, asked).go()
    if not processes.leads:
        return Evaluation({})
    samples = asked.in_order(seeds)
    results = {
        "task": name,
        **figures(samples, len(problems)),
        "seconds": round(time.perf_counter() - began, 3),
        **_generation_figures(samples, saved.seconds),
        "generation": {
            **asdict(sampling),
            "batch": batch,
            "chat": options.chat != "no" and bool(tokenizer.chat_template),
        },
        "prompt_hash": prompt_hash(prompts),
        "backend": generator.writer.name,
        **({"processes": processes.count} if processes.count > 1 else {}),
        "notes": notes,
    }
    return Evaluation(results, samples)


def number_of_completions(task: Task, limit: int | None) -> int:
    """How many completions `run_task` makes: the total of a progress display."""
    return len(list(task.problems())[:limit]) * len(_seeds(task))


def times_asked(task: Task) -> int:
    """How often every problem is asked: once per seed, or once where all runs are alike."""
    return len(_seeds(task))


def figures(samples: Sequence[dict[str, Any]], n: int) -> dict[str, Any]:
    """Counts, accuracy and its 95 % interval: a bootstrap over problems for several seeds, else Wilson's."""
    counts = {verdict: sum(sample["verdict"] == verdict for sample in samples) for verdict in _VERDICTS}
    seeds = list(dict.fromkeys(sample["seed"] for sample in samples))
    per_seed = []
    for seed in seeds:
        correct = sum(sample["verdict"] == "correct" for sample in samples if sample["seed"] == seed)
        low, high = wilson(correct, n)
        per_seed.append({"seed": seed, "correct": correct, "accuracy": correct / n, "low": low, "high": high})
    by_problem = scores(samples)
    # Of problems that are all alike every draw is the same, and a bootstrap would be certain of four problems.
    drawn = len(seeds) > 1 and len({*by_problem}) > 1
    low, high = bootstrap(by_problem) if drawn else wilson(sum(by_problem), n)
    return {
        "n": n,
        **counts,
        "accuracy": counts["correct"] / len(samples),
        "low": low,
        "high": high,
        "interval": "bootstrap over problems" if drawn else "Wilson",
        "seeds": seeds,
        "per_seed": per_seed,
        **({"pass_at_k": _pass_at(samples, len(seeds))} if len(seeds) > 1 else {}),
    }


def _pass_at(samples: Sequence[dict[str, Any]], count: int) -> dict[str, float]:
    """Chance that one of k completions of a problem is right, for k of 1, 2, 4, ... and all."""
    correct = [round(score * count) for score in scores(samples)]
    steps = sorted({min(2**power, count) for power in range(count.bit_length() + 1)})
    return {str(k): sum(pass_at_k(count, each, k) for each in correct) / len(correct) for k in steps}


def scores(samples: Sequence[dict[str, Any]]) -> list[float]:
    """Share of correct completions of each problem, over the seeds, in the order of the problems."""
    found: dict[int, list[bool]] = {}
    for sample in samples:
        found.setdefault(sample["index"], []).append(sample["verdict"] == "correct")
    return [sum(found[index]) / len(found[index]) for index in sorted(found)]


_VERDICTS = ("correct", "wrong", "unverifiable")


def _generation_figures(samples: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    count = len(samples)
    tokens = sum(sample["tokens"] for sample in samples)
    return {
        "truncated": sum(sample["truncated"] for sample in samples) / count,
        "repetition": sum(sample["looping"] for sample in samples) / count,
        "unclosed_think": sum(sample["unclosed_think"] for sample in samples) / count,
        "mean_tokens": tokens / count,
        "tokens_per_s": round(tokens / seconds, 1) if seconds else None,
    }


def _seeds(task: Task) -> tuple[int, ...]:
    """One run per seed; greedy runs are all alike."""
    seeds = task.options.seeds or (0,)
    return seeds if task.options.temperature > 0 else seeds[:1]


@dataclass
class _Asked:
    """The problems with what was answered to them so far, graded as it comes."""

    task: Task
    problems: Sequence[Row]
    prompts: Sequence[Prompt]
    stream: Path | None
    report: Report | None
    samples: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stream is not None:
            self.stream.write_text("", encoding="utf-8")

    def graded(self, seed: int, batch: Batch, completions: Sequence[Completion]) -> Finished:
        """A batch that was written, with its verdicts."""
        verdicts = [
            self.task.grade(one.to_grade, self.problems[index]["answer"], self.problems[index])
            for index, one in zip(batch.indices, completions, strict=True)
        ]
        return Finished(seed, batch.indices, completions, verdicts)

    def add(self, finished: Finished) -> None:
        """Takes a graded batch in."""
        seed, *columns = finished
        rows = [self._row(seed, *one) for one in zip(*columns, strict=True)]
        self.samples.update({(seed, row["index"]): row for row in rows})
        if self.stream is not None:
            with self.stream.open("a", encoding="utf-8", errors=LONE) as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def tell(self, done: float, note: str = "") -> None:
        """Reports how far the run is, with the accuracy so far."""
        if self.report is not None:
            self.report(done, "  ".join(filter(None, (self._so_far(), note))))

    def in_order(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """All rows, seed by seed."""
        return [self.samples[seed, index] for seed in seeds for index in range(len(self.problems))]

    def _so_far(self) -> str:
        graded = len(self.samples)
        if not graded:
            return ""
        correct = sum(row["verdict"] == "correct" for row in self.samples.values())
        low, high = wilson(correct, graded)
        return f"{100 * correct / graded:.1f} % correct ({100 * low:.0f} to {100 * high:.0f})"

    def _row(self, seed: int, index: int, completion: Completion, verdict: Verdict) -> dict[str, Any]:
        """One completion, as `samples.jsonl` holds it."""
        return {
            "index": index,
            "seed": seed,
            "prompt": self.prompts[index].text,
            "completion": completion.text,
            "answer": str(self.problems[index]["answer"]),
            "verdict": verdict,
            "tokens": len(completion.tokens),
            "truncated": completion.truncated,
            "looping": completion.looping,
            "unclosed_think": completion.unclosed_think,
        }


@dataclass
class _Run:
    """All batches of all seeds; of several processes each writes its share, and the first takes in what all wrote.

    Attributes:
        before: completions that were there when it began.
        mine: completions that this process has written since.
    """

    generator: Generator
    units: Sequence[Unit]
    saved: Saved
    asked: _Asked
    before: int = 0
    mine: int = 0

    def go(self) -> None:
        """Asks every problem; finished batches are not done again."""
        divide = self.generator.writer.at_once > 0
        there, share = self.saved.begin(self.units, prompt_hash(self.asked.prompts), divide=divide)
        for finished in there:
            self.asked.add(finished)
        self.before = len(self.asked.samples)
        for seed in dict.fromkeys(seed for seed, _ in share):
            self._write(seed, [batch for its, batch in share if its == seed])
        if self.saved.several:
            self._tell(self.mine, 0.0)
        total = sum(len(batch.indices) for _, batch in self.units)
        while self.saved.leads and len(self.asked.samples) < total:
            time.sleep(LOOK_S)
            self._take()
            self._tell(self.mine, 0.0)

    def _write(self, seed: int, batches: Sequence[Batch]) -> None:
        """Writes batches of this process."""
        start = self.mine
        told = not self.saved.leads or self.asked.report is not None
        pace = (lambda done, speed: self._tell(start + done, speed)) if told else None
        for batch, completions, seconds in complete_all(self.generator, self.asked.prompts, batches, seed, pace):
            finished = self.asked.graded(seed, batch, completions)
            self.saved.add(finished, seconds)
            self.mine += len(completions)
            if self.saved.leads:
                self.asked.add(finished)
                self._take()

    def _take(self) -> None:
        """Takes in what other processes have finished meanwhile."""
        for finished in self.saved.news():
            self.asked.add(finished)

    def _tell(self, mine: int, tokens_per_s: float) -> None:
        """Reports how far all processes are together; of all but the first, tells the first."""
        if not self.saved.leads:
            self.saved.tell(mine, tokens_per_s)
            return
        others, speed = self.saved.told()
        taken = len(self.asked.samples) - self.before - self.mine
        self.asked.tell(self.before + mine + max(others, taken), pace_of(tokens_per_s + speed))


def _with_settings(problem: Row, options: TaskOptions) -> Row:
    """A problem with the system prompt and the settings of the chat template that the task's options name."""
    more: Any = {"system": options.system} if options.system else {}
    if options.chat_template_kwargs:
        more["template"] = {**problem.get("template", {}), **options.chat_template_kwargs}
    return {**problem, **more} if more else problem
