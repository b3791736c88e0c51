"""Trains a quantized model for one objective, with a TRL trainer and the optimizer that keeps it on the grid.

.resume/checkpoint-*     until the step is published: from the last whole one an interrupted run resumes
training.jsonl           a line per optimizer step
latents.safetensors      where the latent weights stand in their cells, for a next train step
model.safetensors ...    the trained model, as `rqat.model.checkpoint` writes it
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...batches import split_batch
from ...job import Job, log
from ...optimizers import RATES
from ...overlap import overlaps_written
from ...processes import Processes
from ...stage import READ_AHEAD, Finding, Look, Step
from ...storage import read_json, read_json_lines

if TYPE_CHECKING:
    import transformers

    from ...contracts import RewardFunction
    from ...model.checkpoint import Checkpoint
    from ...train.data import Prepared
    from ...train.optimizer import QuantizedOptimizer
    from ...train.shards import Share
    from . import TrainKeys, WatchKeys

LOG = "training.jsonl"


def run(job: Job, step: Step) -> dict[str, Any]:
    """Trains `step.inputs["start"]`; see the module for what it writes.

    In several processes all call it: the first writes, the others only leave their random states in checkpoints.

    Returns:
        steps, final_loss, tokens, latents_from, train_seconds, rows read, used and dropped; codes_changed,
        scales_changed and zeros_changed, shares of all that are trained; of an objective that writes,
        sampler_gap_nats, and completion_tokens, the longest that a completion may be; `chosen`, where keys leave
        something to the free memory; only `skipped`, with the reason, where the gate said so.

    Raises:
        RqatError: the data, the model or the settings do not fit, or training diverged. What was saved stays.
    """
    from ...model.checkpoint import keep_generation_settings, save_checkpoint
    from ...train.checkpoints import last_complete
    from ...train.latents import save_offsets
    from .chosen import chosen_for
    from .weights import copy_latents, learned, start_of

    keys: TrainKeys = step.settings  # type: ignore[assignment]
    work, start_folder = job.workdir(step), job.result_of(step.inputs["start"])
    why = _skipped(job, step)
    chosen = {} if why else chosen_for(job, step, keys)
    keys = keys.model_copy(update=chosen)
    checkpoint = None if why else last_complete(job.scratch(step), clean=job.processes.leads)
    start = start_of(job, start_folder)
    if why:
        if not job.processes.leads:
            return {}
        log.warning("%s: skipped, %s", step.name, why)
        save_checkpoint(work, start.model, start.tokenizer, start.layers, start.transforms)
        keep_generation_settings(start_folder, work)
        copy_latents(start_folder, work)
        return {"skipped": why}

    # Trainers change both (`use_cache=False`, for one), and what is saved would generate many times slower.
    configs = copy.deepcopy((start.model.config, start.model.generation_config))
    rows = {name: len(layer.codes) for name, layer in start.layers.items()}
    optimizer, facts = _train(job, step, keys, start, start_folder, checkpoint)
    layers, offsets, moved = learned(job, start, optimizer, rows)
    if not job.processes.leads:
        return {}
    if not any(moved.values()) and keys.other_lr is None:
        log.warning(
            "%s: changed nothing: every code, scale and zero point is what it was before. Raise %s or steps.",
            step.name,
            ", ".join(name for name in RATES if getattr(keys, name) is not None),
        )
    start.model.config, start.model.generation_config = configs
    save_checkpoint(work, start.model, start.tokenizer, layers, start.transforms)
    keep_generation_settings(start_folder, work)
    if keys.lr is None:
        copy_latents(start_folder, work)
    else:
        save_offsets(work, offsets)
    facts |= moved
    return {**facts, "chosen": chosen} if chosen else facts


def read_ahead(step: Step, look: Look) -> Iterator[Finding]:
    """What is wrong with the rows that a step would train on, as far as `READ_AHEAD` of them tell.

    Raises:
        RqatError: they cannot be read.
    """
    from ...model.load import load_tokenizer
    from ...train.data import check_rows

    keys: TrainKeys = step.settings  # type: ignore[assignment]
    card = step.parts["objective"].card
    assert look.parts is not None
    source = look.parts.make(step.parts["source"])
    limit = min(READ_AHEAD, keys.steps * keys.batch)
    rows = itertools.islice(source.rows(keys.data.split, keys.data.seed), limit)
    if look.config is None or look.config.folder is None:  # there is no tokenizer yet
        next(iter(rows), None)
        return
    longest = min(keys.max_tokens, look.config.context or keys.max_tokens)
    tokenizer = load_tokenizer(look.plan.model, offline=look.offline)
    watch = step.parts.get("watch")
    there = watch is not None and not any(use.card.model for use in watch.all())
    if watch is not None and there and next(look.parts.make(watch).rows(), None) is None:
        yield step.finding("error", "watch", f"'{watch.card.name}' has no rows.", "Check its sources and its split.")
    options = step.parts["objective"].options
    looks: dict[str, Any] = {
        "writes": card.writes,
        "graded": _graded(step),
        "most": limit,
        "taken": _taken(keys, options),
    }
    looks["completion_tokens"] = getattr(options, "max_completion_tokens", None)
    for problem in check_rows(rows, tokenizer, max_tokens=longest, **looks):
        yield step.finding(problem.level, problem.key, problem.text, problem.hint)


def _train(
    job: Job, step: Step, keys: TrainKeys, start: Checkpoint, start_folder: Path, checkpoint: Path | None
) -> tuple[QuantizedOptimizer, dict[str, Any]]:
    """Runs the trainer to its end; the model of `start` is trained in place.

    Args:
        checkpoint: to resume from.
    """
    from transformers import set_seed

    from ...contracts import Training
    from ...generation.sampling import context_length, own_settings_hidden, too_little_room
    from ...model.repeatable import repeatable_attention
    from ...quiet import quiet_training
    from ...train.callbacks import done_once, expect_given, reporters, without_printing
    from ...train.checkpoints import parts_in, processes_of, step_of
    from ...train.data import completion_room, dropped_rows, prepare_rows, uses
    from ...train.one_gpu import one_gpu
    from ...train.optimizer import QuantizedOptimizer
    from ...train.rollouts import BACKENDS, Rollouts
    from ...train.sampler_gap import sampler_gap
    from ...train.saving import Saving
    from ...train.schedule import build_schedule, optimizer_class
    from ...train.shards import ALL, Share, split, whole
    from ...train.teacher import load_teacher
    from ...train.training_log import Log
    from .weights import latents_of

    work, objective, processes = job.workdir(step), step.parts["objective"], job.processes
    card = objective.card
    arguments = _arguments(keys, job.scratch(step), job.device, processes)
    arguments |= {"run_name": f"{job.plan.recipe.name}-{step.name}", "project": job.plan.recipe.name}
    with quiet_training():
        set_seed(keys.seed)
        max_tokens = min(keys.max_tokens, context_length(start.model))
        source = job.make(step, "source")
        if processes.leads:
            for found in overlaps_written(job.plan, job.built, step, source):
                log.warning("%s %s", found.text, found.hint)
        rows = prepare_rows(
            source.rows(keys.data.split, keys.data.seed),
            start.tokenizer,
            steps=keys.steps,
            batch=keys.batch,
            max_tokens=max_tokens,
            seed=keys.seed,
            writes=card.writes,
            graded=_graded(step),
        )
        rows.facts |= uses(rows.rows, _taken(keys, objective.options))
        if rows.facts["rows_dropped_too_long"] and processes.leads:
            log.warning("%s: %s", step.name, dropped_rows(rows.facts, max_tokens))
        teacher = None
        if objective.teacher:
            kept = job.original if keys.teacher is None else None
            named = keys.teacher or job.plan.model
            teacher = load_teacher(named, start.tokenizer, device=job.device, offline=job.offline, original=kept)
        share = ALL
        if keys.shard is True and processes.count > 1:
            share = Share(processes.rank, processes.count)
            for model in [start.model] if teacher is None else [start.model, teacher]:
                split(model, processes)
            start.layers = share.of_layers(start.layers)
        room = completion_room(rows.rows, max_tokens, objective.options) if card.writes else 0
        if card.writes:
            rows.facts["completion_tokens"] = room
            less = too_little_room(room, getattr(objective.options, "max_completion_tokens", None))
            if less and processes.leads:
                log.warning("%s: %s", step.name, less)
        rollouts = None
        backend: Any = getattr(getattr(objective.options, "rollouts", None), "engine", "auto")
        if card.writes and backend in BACKENDS:
            rollouts = Rollouts(start.model, start.tokenizer, backend, limit=room, seed=keys.seed, rank=processes.rank)
        unquantized = teacher if keys.teacher is None else None
        latents, where = latents_of(job, start, start_folder, unquantized, keys, share)
        optimizer = QuantizedOptimizer(
            start.model,
            start.layers,
            inner=optimizer_class(keys.optimizer),
            lr=keys.lr,
            lr_in=keys.lr_in,
            scale_lr=keys.scale_lr,
            zero_lr=keys.zero_lr,
            other_lr=keys.other_lr,
            train_embedding=keys.train_embedding,
            weight_decay=keys.weight_decay,
            latents=latents,
            reach=keys.latent_reach,
        )
        rewards, weights = _rewards(job, step, start, rows, room) if card.graded else ([], [])
        del latents  # they may hold the whole model before quantization
        seed = keys.seed + processes.rank
        if checkpoint is not None:
            log.info("%s: resumes after step %d of %d", step.name, step_of(checkpoint), keys.steps)
            before, parts = processes_of(checkpoint), len(parts_in(checkpoint)) or 1
            if before != processes.count:
                log.warning(
                    "%s: resumes with %d process(es), its checkpoint was saved by %d: sums are rounded in another way, "
                    "and rollouts are drawn with other random numbers, than in a run that did not change.",
                    step.name, processes.count, before,
                )  # fmt: skip
            elif parts != share.count:
                log.warning(
                    "%s: resumes with %s, its checkpoint was saved with %s: sums are rounded in another way than in a "
                    "run that did not change.", step.name, *(_spread(count) for count in (share.count, parts)),
                )  # fmt: skip
            if before != processes.count:
                seed += step_of(checkpoint) * max(before, processes.count)
        with job.progress.task(f"train {step.variant}", keys.steps) as bar, one_gpu(), own_settings_hidden(start.model):
            scheduler = build_schedule(optimizer, keys)
            saving = Saving(
                job.scratch(step),
                optimizer,
                scheduler,
                every_steps=keys.save_steps,
                every_s=keys.save_s,
                processes=processes,
                log=work / LOG,
                then=job.saved,
                share=share,
            )
            callbacks: list[Any] = [saving]
            if processes.leads:
                callbacks[:0] = reporters(job.plan.recipe.log, job.folder, step.name)
                callbacks.insert(0, Log(work / LOG, step.name, done=step_of(checkpoint), steps=keys.steps, bar=bar))
            if keys.watch is not None and (processes.leads or share.count > 1):
                original = teacher if keys.teacher is None else None
                callbacks.insert(0, _watch(job, step, keys.watch, start, original, share))
            training = Training(
                model=start.model,
                tokenizer=copy.deepcopy(start.tokenizer),  # trainers give it a pad token, which would be exported
                rows=rows.rows,
                optimizer=optimizer,
                scheduler=scheduler,
                arguments=arguments,
                max_tokens=max_tokens,
                teacher=teacher,
                max_completion_tokens=room,
                rollouts=rollouts,
                rewards=rewards,
                reward_weights=weights,
                callbacks=callbacks,
                processes=processes.count,
            )
            trainer = job.make(step, "objective").build_trainer(training)
            expect_given(trainer, training, card)
            without_printing(trainer)
            saving.attach(trainer)
            if rollouts is not None and (processes.leads or share.count > 1):
                some = rows.rows["prompt_ids"][:4]
                with whole(start.model):
                    gap = sampler_gap(start.model, start.tokenizer, some, writer=rollouts.writer)
                rows.facts["sampler_gap_nats"] = gap
            set_seed(seed)
            if checkpoint is not None and step_of(checkpoint) >= keys.steps:  # it has ended: only results are missing
                trainer.state = saving.resume(checkpoint)
                bar.update(keys.steps)
            else:
                with saving.guarding(), repeatable_attention(job.device), done_once(trainer):
                    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.state.global_step < keys.steps and processes.leads:
        log.warning("%s: its trainer ended after step %d of %d.", step.name, trainer.state.global_step, keys.steps)
    lines = read_json_lines(work / LOG)
    last = lines[-1] if lines else {}
    return optimizer, {
        "steps": trainer.state.global_step,
        "final_loss": last.get("loss"),
        "tokens": int(trainer.state.num_input_tokens_seen),
        "latents_from": where,
        "train_seconds": round(sum(line["seconds"] for line in lines), 3),
        **rows.facts,
    }


def _taken(keys: TrainKeys, options: Any) -> int:
    """Rows that a training takes: one a sequence, or one for several completions of its prompt."""
    return keys.steps * keys.batch // int(getattr(options, "generations", 1))


def _spread(parts: int) -> str:
    return f"its model split over {parts} processes" if parts > 1 else "the whole model in every process"


def _watch(
    job: Job,
    step: Step,
    keys: WatchKeys,
    start: Checkpoint,
    original: transformers.PreTrainedModel | None,
    share: Share,
) -> Any:
    """The callback that looks on; `original`: the model before quantization, if it is in memory already."""
    from ...evals.compare import rows_of, tokenized
    from ...train.shards import split
    from ...train.teacher import load_teacher
    from .watch import Watch

    task = job.make(step, "watch")
    rows = tokenized(rows_of(task, keys.task, keys.limit), start.tokenizer) if job.processes.leads else None
    if original is None:
        original = load_teacher(
            job.plan.model, start.tokenizer, device=job.device, offline=job.offline, original=job.original
        )
        if share.count > 1:
            split(original, job.processes)
    return Watch(task, keys.every, start.model, original, start.tokenizer, rows)


def _graded(step: Step) -> bool:
    """Whether its completions are judged, for which rows need answers."""
    return step.parts["objective"].card.graded and "task" in step.parts


def _rewards(
    job: Job, step: Step, start: Checkpoint, rows: Prepared, limit: int
) -> tuple[list[RewardFunction], list[float]]:
    """TRL's reward functions and their weights; `limit`: tokens a completion may have."""
    from ...generation.sampling import end_tokens
    from ...train.rewards import Judge, reward_function

    task = job.make(step, "task") if _graded(step) else None
    judge = Judge(task, rows.source, start.tokenizer, end_tokens(start.model, start.tokenizer), limit)
    parts = step.parts["objective"].parts
    made = [reward_function(use.card.name, job.registry.make(use.card, use.options), judge) for use, _ in parts]
    return made, [weight for _, weight in parts]


def _arguments(keys: TrainKeys, folder: Path, device: str, processes: Processes) -> dict[str, Any]:
    """Settings every TRL config takes; `batch` is that of all processes together."""
    micro, passes = split_batch(keys.batch, keys.at_once, processes.count)
    return {
        "output_dir": str(folder),
        "max_steps": keys.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": passes,
        "learning_rate": keys.lr or keys.scale_lr or keys.zero_lr or keys.other_lr,
        "max_grad_norm": keys.max_grad_norm,
        "seed": keys.seed,
        "data_seed": keys.seed,
        "train_sampling_strategy": "sequential",
        "use_cpu": device == "cpu",
        # The model is in bfloat16 already where that is wanted; autocast would only add casts.
        "bf16": False,
        "gradient_checkpointing": keys.recomputes(device),
        "save_strategy": "no",  # `rqat.train.saving` does
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **processes.arguments(device),
    }


def _skipped(job: Job, step: Step) -> str:
    """Why the gate before this step says not to train, or ""."""
    if "gate" not in step.inputs:
        return ""
    verdict = read_json(job.result_of(step.inputs["gate"]) / "gate.json") or {}
    return verdict.get("why", "") if verdict.get("action") == "skip" and not verdict.get("passed") else ""
