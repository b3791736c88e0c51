"""Measures, before an objective that is trained on rewards, whether there is anything to learn from.

gate.json        figures, whether the floors are met, and the action for the train step to follow
samples.jsonl    the sampled completions
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...job import Job, log
from ...stage import Step
from ...storage import write_json, write_json_lines

if TYPE_CHECKING:
    from . import GateSettings


def run(job: Job, step: Step) -> dict[str, Any]:
    """Samples from `step.inputs["start"]`; the objective's `temperature`, `top_p` and `max_completion_tokens` are used.

    Returns:
        pass_rate, signal, truncated and the rest of `rqat.train.gate.judge`; completion_tokens, the longest that a
        completion could be.

    Raises:
        RqatError: a floor is missed and the recipe says to stop.
    """
    from transformers import set_seed

    from ...generation.backend import writer_for
    from ...generation.complete import Generator, sample
    from ...generation.prompts import Prompt
    from ...generation.sampling import Sampling, context_length
    from ...model.checkpoint import load_checkpoint
    from ...model.devices import default_dtype
    from ...quiet import quiet_training
    from ...train.data import completion_room, prepare_rows
    from ...train.gate import example_of, judge, measure, stop_if_failed

    keys: GateSettings = step.settings  # type: ignore[assignment]
    dtype = default_dtype(job.device, job.plan.model.dtype)
    start = load_checkpoint(job.result_of(step.inputs["start"]), device=job.device, dtype=dtype)
    limit = min(keys.max_tokens, context_length(start.model))
    with quiet_training():
        prepared = prepare_rows(
            job.make(step, "source").rows(keys.data.split, keys.data.seed),
            start.tokenizer,
            steps=1,
            batch=keys.gate.prompts,
            max_tokens=limit,
            seed=keys.seed,
            writes=True,
            graded=True,
        )
        rows, source = prepared.rows, prepared.source
        prompts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in rows["prompt"]]
        set_seed(keys.seed)
        with job.progress.task(f"gate {step.variant}", len(prompts)) as bar:
            sampling = Sampling(
                max_new_tokens=completion_room(rows, limit, keys),
                temperature=keys.temperature,
                top_p=keys.top_p,
            )
            # Completions of one prompt are written together, and stay until all have ended: see TransformersWriter.
            together = max(1, keys.batch // keys.gate.samples) * keys.gate.samples
            writer = writer_for(start.model, rows=together, piece=None)
            generator = Generator(start.model, start.tokenizer, sampling, writer)
            asked = [Prompt(str(start.tokenizer.decode(ids)), tuple(ids)) for ids in rows["prompt_ids"]]
            completions = sample(generator, asked, keys.gate.samples, advance=bar.update)
            figures = measure(completions, [source[index] for index in rows["row"]], job.make(step, "task").grade)
            bar.update(len(prompts), f"{figures.pass_rate:.1%} correct")
    verdict = judge(figures, keys.gate) | {"completion_tokens": sampling.max_new_tokens}
    lines = [
        {"prompt": prompt, "completion": c.text, "answer": answer, "tokens": len(c.tokens), "ended": c.ended}
        for prompt, answer, group in zip(prompts, rows["answer"], completions, strict=True)
        for c in group
    ]
    write_json_lines(job.workdir(step) / "samples.jsonl", lines)
    write_json(job.workdir(step) / "gate.json", verdict)
    stop_if_failed(verdict, keys.objective, keys.gate, example_of(lines))
    if not verdict["passed"]:
        log.warning("%s: %s", step.name, verdict["why"])
    return verdict
