"""Lets a source write what it will be read from, with the model before quantization at hand.

What a source writes lies in the step's folder, as it likes; interrupted, it is called again and finds it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from ...contracts import Completion, LoadedModel, Row, Source, Task, Verdict
from ...errors import DataError, PluginError
from ...generation.backend import open_model, writer_for
from ...generation.complete import Report, complete_rows
from ...generation.sampling import too_little_room
from ...job import Bar, Job, log
from ...model.config import read_config
from ...model.stored_schemes import is_quantized
from ...stage import Finding, Look, Step
from . import ROWS_AT_ONCE, ProduceSettings

if TYPE_CHECKING:
    import transformers


def run(job: Job, step: Step) -> dict[str, Any]:
    """Loads the plan's model and calls `Source.produce`.

    Returns:
        what the source tells, behind its name.

    Raises:
        PluginError: it wrote nothing, or tells something else than figures by name.
        RqatError: see `load_model`, and whatever the source reports.
    """
    keys, card = step.settings, step.parts["source"].card
    assert isinstance(keys, ProduceSettings)
    source: Source = job.make(step, "source")
    model, tokenizer = _opened(job)
    folder = job.workdir(step)
    with loaded(job, model, tokenizer, f"produce {card.name}") as given:
        told = source.produce(folder, given, keys.split, keys.seed)
    told = {} if told is None else told
    if not isinstance(told, Mapping):
        raise PluginError(f"{card}: produce returned {told!r}.", hint="Return a mapping of figures; it may be empty.")
    if not any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*")):
        raise PluginError(f"{card}: produce wrote nothing into its folder.", hint="Report this to its author.")
    return {"source": card.name, **told}


def _opened(job: Job) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """The plan's model, which may be quantized already: a step of a run, or an exported one."""
    opened = open_model if is_quantized(read_config(job.plan.model, offline=job.offline)) else job.original.copied
    return opened(job.plan.model, device=job.device, offline=job.offline)


@contextmanager
def loaded(
    job: Job, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, label: str
) -> Iterator[LoadedModel]:
    """What a source is given; its completions show a progress bar: one for each call, or one for all of a `total`."""
    writer = writer_for(model)
    bars: list[Bar] = []
    done, room, asked = 0, 0, 0

    def complete(
        rows: Sequence[Row],
        samples: int = 1,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch: int = ROWS_AT_ONCE,
        turn: Literal["assistant", "user"] = "assistant",
        total: int | None = None,
    ) -> list[list[Completion]]:
        nonlocal done, room, asked

        def written(report: Report) -> list[list[Completion]]:
            return complete_rows(
                model,
                tokenizer,
                rows,
                samples,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                batch=batch,
                turn=turn,
                writer=writer,
                report=report,
            )

        if total is None:
            with job.progress.task(label, len(rows) * samples) as bar:
                found = written(bar.update)
        else:
            if not bars:
                bars.append(whole.enter_context(job.progress.task(label, total)))
            before = done
            found = written(lambda finished, note: bars[0].update(before + finished, note))
            done += len(rows) * samples
        least = min((one.limit for each in found for one in each), default=max_new_tokens)
        if least < max_new_tokens and (not room or least < room):
            room, asked = least, max_new_tokens
        return found

    @cache
    def task_called(name: str) -> Task:
        card = job.registry.card("task", name)
        made: Task = job.registry.make(card, job.registry.options(card, {}))
        return made

    def grade(task: str, completion: str, row: Row) -> Verdict:
        if "answer" not in row:
            raise DataError(f"A row without an answer cannot be graded by '{task}'.", hint="Use rows with an answer.")
        return task_called(task).grade(completion, row["answer"], row)

    with ExitStack() as whole:
        yield LoadedModel(model, tokenizer, complete, grade)
    if room:
        log.warning("%s: %s", label, too_little_room(room, asked))


def read_ahead(step: Step, look: Look) -> Iterator[Finding]:
    """What is wrong with the sources that a source is made of: whether they can be read, and have rows; what it says.

    Nothing, where the model writes those first, in a step of their own.

    Raises:
        RqatError: they cannot be read.
    """
    keys, use = step.settings, step.parts["source"]
    assert isinstance(keys, ProduceSettings)
    assert look.parts is not None
    if any(inner.card.model for part, _ in use.sources for inner in part.all()):
        return
    for part, _ in use.sources:
        inner: Source = look.parts.make(part)
        if next(iter(inner.rows(keys.split, keys.seed)), None) is None:
            text = f"'{part.card.name}' has no rows in its {keys.split} split."
            yield step.finding("error", "", text, "Check its options.")
            return
    source: Source = look.parts.make(use)
    for problem in source.read_ahead(keys.split, keys.seed):
        yield step.finding(problem.level, problem.key, problem.text, problem.hint)
