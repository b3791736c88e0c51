"""A model -> how well it does on a task.

<step>/results.json     figures of the evaluation (see evals/harness.py)
<step>/samples.jsonl    one row per completion: prompt, completion, answer, verdict, tokens
<step>.partial/.resume/samples*.jsonl   finished batches, from which an interrupted evaluation resumes (evals/saved.py)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...contracts import Comparison, File, Task, TaskOptions
from ...errors import RqatError
from ...evals.compare import rows_of, run_comparison
from ...evals.harness import Evaluation, number_of_completions, run_task
from ...generation.backend import Backend, open_model, open_served, writer_for
from ...generation.server_writer import ServerWriter
from ...generation.writer import Writer
from ...job import Job
from ...model.config import read_config
from ...model.devices import default_dtype
from ...model.stored_schemes import is_quantized
from ...model.tokenizers import tokenizer_in
from ...model.vocabulary import ORIGINAL, check_vocabularies
from ...packed.load import load_packed
from ...stage import Finding, Look, Step, Use
from ...storage import write_json, write_json_lines
from . import LM_EVAL, EvaluateKeys

if TYPE_CHECKING:
    import transformers

RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.jsonl"

log = logging.getLogger("rqat")


def run(job: Job, step: Step) -> dict[str, Any]:
    """Evaluates the model of the step's variant on the step's task.

    In several processes all call it, and the first writes the files.

    Returns:
        the figures of results.json; in processes that do not lead, nothing.

    Raises:
        RqatError: see `load_model`, `load_checkpoint`, `run_task` and `run_lm_eval_task`.
    """
    keys = step.settings
    assert isinstance(keys, EvaluateKeys)
    work = job.workdir(step)
    if keys.task.startswith(LM_EVAL):
        found = _lm_eval_task(job, step, keys)
    elif step.parts["task"].card.compares:
        found = _comparison(job, step, keys)
    else:
        task: Task = job.make(step, "task")
        scratch = job.scratch(step)
        scratch.mkdir(exist_ok=True)
        # Before the model is loaded: missing data is known at once.
        total = number_of_completions(task, keys.limit)
        model, tokenizer, writer = _opened(job, step, keys)
        with job.progress.task(_label(job, step, keys.task), total) as bar:
            found = run_task(
                task,
                keys.task,
                model,
                tokenizer,
                limit=keys.limit,
                batch=keys.batch,
                partial=scratch / SAMPLES_FILE,
                stream=work / SAMPLES_FILE,
                report=bar.update,
                writer=writer,
                processes=job.processes,
            )
            if not job.processes.leads:
                return {}
            bar.update(total, f"{found.results['accuracy']:.1%} correct")
    for note in found.results["notes"]:
        log.warning("%s: %s", step.name, note)
    results = {"variant": step.variant, "backend": "transformers", **found.results}
    if keys.base_url is not None:
        results["server"] = keys.base_url
    write_evaluation(work, results, found.samples)
    return results


def read_ahead(step: Step, look: Look) -> Iterator[Finding]:
    """Whether the problems of a step's task are there.

    Raises:
        RqatError: they cannot be read, or lm-eval has no such task.
    """
    keys = step.settings
    assert isinstance(keys, EvaluateKeys)
    assert look.parts is not None
    if keys.task.startswith(LM_EVAL):
        from ...evals.lm_eval_tasks import prepare_task

        options = step.parts["task"].options
        assert isinstance(options, TaskOptions)
        try:
            known = [card.name for card in look.parts.known("task")]
            prepare_task(keys.task.removeprefix(LM_EVAL), options, known)
        except RqatError as error:
            yield step.finding("error", "task", error.message, error.hint)
        return
    task: Task = look.parts.make(step.parts["task"])
    if isinstance(task, Comparison):
        if next(task.rows(), None) is None:
            yield step.finding("error", "rows", f"'{keys.task}' has no rows.", "Check its sources and its split.")
        return
    if not len(task.problems()):
        yield step.finding("error", "task", f"'{keys.task}' has no problems.", "Check its options.")


def load_variant(
    job: Job, step: Step, backend: Backend = "auto"
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """The model a step evaluates: the result of the step it starts from, else the plan's model as it is."""
    if "start" not in step.inputs:
        return _unchanged(job, backend)
    folder, dtype = job.result_of(step.inputs["start"]), default_dtype(job.device, job.plan.model.dtype)
    if backend == "packed":
        return load_packed(folder, job.device, dtype)
    loaded = job.checkpoints.get(folder, device=job.device, dtype=dtype)
    return loaded.model, tokenizer_in(folder)


def _opened(job: Job, step: Step, keys: EvaluateKeys) -> tuple[Any, transformers.PreTrainedTokenizerBase, Writer]:
    """The model of a step, or what is known of the one that a server runs, and what writes with it."""
    if keys.base_url is not None:
        served, tokenizer = open_served(job.plan.model, offline=job.offline)
        return served, tokenizer, ServerWriter(keys.base_url, tokenizer, keys.served_as)
    model, tokenizer = load_variant(job, step, keys.backend)
    return model, tokenizer, writer_for(model, keys.backend)


def _unchanged(job: Job, backend: Backend) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """The plan's model as it is, for reading only: the one that is kept in memory, unless it is quantized itself."""
    keys = job.plan.model
    if backend == "packed" or is_quantized(read_config(keys, offline=job.offline)):
        return open_model(keys, device=job.device, offline=job.offline, backend=backend)
    return job.original.get(keys, device=job.device, offline=job.offline)


def _label(job: Job, step: Step, task: str) -> str:
    """What the progress display says: of a plan with one model, no more than the task."""
    return f"evaluate {step.variant} on {task}" if len(job.plan.variants) > 1 else f"evaluate {task}"


def write_evaluation(folder: Path, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
    """Writes results.json and samples.jsonl."""
    write_json_lines(folder / SAMPLES_FILE, samples)
    write_json(folder / RESULTS_FILE, results)


def _comparison(job: Job, step: Step, keys: EvaluateKeys) -> Evaluation:
    """Of a task that compares the step's model with its original."""
    task: Comparison = job.make(step, "task")
    rows = rows_of(task, keys.task, keys.limit)
    backend: Backend = "packed" if keys.backend == "packed" else "transformers"
    model, tokenizer = load_variant(job, step, backend)
    original = model
    if keys.original is not None or "start" in step.inputs:
        if keys.original is None:
            original, words = _unchanged(job, "transformers")
        else:
            other = keys.original
            original, words = open_model(other, device=job.device, offline=job.offline, backend="transformers")
        check_vocabularies(words.get_vocab(), tokenizer.get_vocab(), ORIGINAL)
    with job.progress.task(_label(job, step, keys.task), len(rows)) as bar:
        data = ", ".join(data_of(part) for part, _ in step.parts["task"].sources)
        return run_comparison(task, keys.task, data, model, original, tokenizer, rows, bar.update)


def data_of(use: Use) -> str:
    """What a source is called in a report: with its file, and with what it is made of."""
    files = [value.path.name for _, value in use.options if isinstance(value, File)]
    inner = ", ".join(data_of(part) for part, _ in use.sources)
    return " ".join([use.card.name, *files, *([f"({inner})"] if inner else [])])


def _lm_eval_task(job: Job, step: Step, keys: EvaluateKeys) -> Evaluation:
    from ...evals.lm_eval_tasks import find_task, run_lm_eval_task

    name = keys.task.removeprefix(LM_EVAL)
    known = [card.name for card in job.registry.cards("task")]
    find_task(name, known)
    options = step.parts["task"].options
    assert isinstance(options, TaskOptions)
    if keys.base_url is not None:
        raise RqatError(
            f"'{name}' is lm-eval's own; a server is asked the tasks of plugins only.",
            hint="`rqat tasks` lists those. lm-eval asks servers by itself: lm_eval --model local-completions.",
        )
    # It may want likelihoods: the model is asked through transformers.
    model, tokenizer = load_variant(job, step, "packed" if keys.backend == "packed" else "transformers")
    with job.progress.task(_label(job, step, name), 1) as bar:
        found = run_lm_eval_task(
            name,
            model,
            tokenizer,
            options,
            limit=keys.limit,
            batch=keys.batch,
            known=known,
        )
        bar.update(1, f"{found.results['accuracy']:.1%}")
    return found
