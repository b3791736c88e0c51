"""Everything that would stop a run, or spoil it, found before torch is imported: one list, all at once."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .batches import UnevenBatch, split_batch
from .contracts import Context, ModelShape
from .errors import ModelError, RqatError, nearest
from .estimate import Estimate, estimate
from .facts import data_files
from .grids import cost_notes, part_problems
from .keys import DataKeys, QuantizeKeys, TrainKeys
from .model.config import ModelConfig, check_quantizable, read_config
from .model.hub import QUANTIZED_FILE
from .model.layers import choose_layers
from .model.vocabulary import check_vocabularies
from .optimizers import OPTIMIZERS, SCHEDULES
from .plan import LM_EVAL, Plan, Step, Use
from .problems import Place
from .registry import Registry

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing to know before a run.

    Attributes:
        level: an error stops the run; a warning may spoil it; a note is good to know.
        text: what is the matter, with its place; one line.
        hint: what to do about it.
    """

    level: Level
    text: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.text} {self.hint}".rstrip()


def preflight(
    plan: Plan, *, folder: Path | None = None, offline: bool = False, device: str = "cpu", processes: int = 1
) -> list[Finding]:
    """Looks at a plan, the model's files, the data files and the disk; errors first.

    Args:
        folder: the run folder, for the check of disk space; None leaves it out.
        offline: nothing may be fetched.
        device: "cpu" or "cuda", for the memory estimate.
        processes: how many train together.
    """
    model = [*_model(plan, folder, offline, device, processes), *_teachers(plan, offline)]
    findings = [*model, *_data(plan), *_training(plan, processes), *_parts(plan, offline)]
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(dict.fromkeys(findings), key=lambda finding: order[finding.level])


def read_data(plan: Plan, registry: Registry, *, done: Collection[str] = ()) -> list[Finding]:
    """Reads the first row of every source and the problems of every task, fetching them if need be, and looks for the
    tasks of lm-eval; so that a run does not find out after hours of training.

    Not part of `preflight`, since it may import large libraries and use the network.

    Args:
        done: names of steps whose data is needed no more.
    """
    findings: list[Finding] = []
    for step in plan.steps:
        if step.name in done:
            continue
        task = str(getattr(step.settings, "task", ""))
        if step.stage == "evaluate" and task.startswith(LM_EVAL):
            from .evals.lm_eval_tasks import find_task

            try:
                find_task(task.removeprefix(LM_EVAL), [card.name for card in registry.cards("task")])
            except RqatError as error:
                findings.append(Finding("error", f"{_place_of(plan, step).at('task')}: {error.message}", error.hint))
        for role in ("source", "task"):
            if role not in step.parts or (step.stage == "gate" or (step.stage == "train" and role == "task")):
                continue
            made, keys = registry.make(step.parts[role].card, step.parts[role].options), step.settings
            keys = keys.data if isinstance(keys, TrainKeys) else keys
            try:
                if isinstance(keys, DataKeys):
                    next(iter(made.rows(keys.split, keys.seed)), None)
                else:
                    made.problems()
            except RqatError as error:
                findings.append(Finding("error", f"{_place_of(plan, step)}: {error.message}", error.hint))
    return list(dict.fromkeys(findings))


def _model(plan: Plan, folder: Path | None, offline: bool, device: str, processes: int) -> Iterator[Finding]:
    """The model's files, layers and sizes; when they cannot be read, the rest of this part is left out."""
    place = plan.place.at("model")
    try:
        config = read_config(plan.model, offline=offline)
    except RqatError as error:
        yield Finding("error", f"{place}: {error.message}", error.hint)
        return
    if config.folder is None:
        yield Finding("note", f"{place}: '{plan.model.path}' will be fetched from the hub, {_size(config.bytes)}.")
    quantizing = [step for step in plan.steps if step.stage == "quantize"]
    if quantizing:
        try:
            check_quantizable(config)
        except RqatError as error:
            yield Finding("error", f"{place}: {error.message}", error.hint)
            return
        yield from _layers(plan, config, quantizing)
        if config.tied:
            yield Finding("note", f"{place}: lm_head shares the embedding's weight; both stay unquantized.")
    yield from _lengths(plan, config)
    yield from _room(estimate(plan, config, device, offline=offline, processes=processes), folder, device)


def _teachers(plan: Plan, offline: bool) -> Iterator[Finding]:
    """Teachers that train steps name: their files, and whether their tokens are the student's."""
    for index, keys in enumerate(plan.recipe.train):
        if keys.teacher is None:
            continue
        place, path = plan.place.at("train", index, "teacher"), keys.teacher.path
        try:
            config = read_config(keys.teacher, offline=offline)
            if config.folder is not None and (config.folder / QUANTIZED_FILE).is_file():
                raise ModelError(f"'{path}' is a step of a run.", hint="Name the folder of an exported model.")
            theirs = config.vocabulary(offline=offline)
        except RqatError as error:
            yield Finding("error", f"{place}: {error.message}", error.hint)
            continue
        try:
            mine = read_config(plan.model, offline=offline).vocabulary(offline=offline)
        except RqatError:
            mine = None  # `_model` reports it, or loading the model does
        if theirs is not None and mine is not None:
            try:
                check_vocabularies(theirs, mine)
            except RqatError as error:
                yield Finding("error", f"{place}: '{path}': {error.message}", error.hint)
        if config.context is not None and keys.max_tokens > config.context:
            text = f"{place}: max_tokens is {keys.max_tokens}, but the teacher's context is {config.context}."
            yield Finding("error", text, f"Use at most {config.context}.")
        if config.quantization is not None:
            method = config.quantization.get("quant_method", "an unknown method")
            fix = "What quantization cost it, the student learns too; distil from 16 or 32 bits if you can."
            yield Finding("warning", f"{place}: '{path}' is quantized itself ({method}).", fix)
        if config.folder is None:
            yield Finding("note", f"{place}: '{path}' will be fetched from the hub, {_size(config.bytes)}.")


def _layers(plan: Plan, config: ModelConfig, steps: Sequence[Step]) -> Iterator[Finding]:
    for step in steps:
        keys = step.settings
        assert isinstance(keys, QuantizeKeys)
        try:
            chosen = choose_layers(
                config.linears, plan.scheme, skip=keys.skip, indivisible=keys.indivisible, head=config.head
            )
        except RqatError as error:
            place, skip, scheme = _place_of(plan, step), "quantize.skip: ", "scheme: "
            place = place.at("skip") if error.message.startswith(skip) else place
            place = plan.place.at("scheme") if error.message.startswith(scheme) else place
            text = error.message.removeprefix(skip).removeprefix(scheme)
            yield Finding("error", f"{place}: {text}", error.hint)
            continue
        left = [name for name in config.linears if name not in chosen]
        if left:
            yield Finding("note", f"{step.name}: {len(left)} linear layers stay as they are: {', '.join(left)}.")


def _lengths(plan: Plan, config: ModelConfig) -> Iterator[Finding]:
    """Sequences longer than the model has positions for."""
    if config.context is None:
        return
    asked = []
    if plan.recipe.calibration is not None:
        asked.append((plan.place.at("calibration", "tokens"), plan.recipe.calibration.tokens))
    asked += [(plan.place.at("train", i, "max_tokens"), keys.max_tokens) for i, keys in enumerate(plan.recipe.train)]
    for place, tokens in asked:
        if tokens > config.context:
            fix = f"Use at most {config.context}."
            yield Finding("error", f"{place}: {tokens} tokens, but the model's context is {config.context}.", fix)
    for step in plan.steps:
        wanted = (
            getattr(step.parts["task"].options, "max_new_tokens", 0) if step.stage == "evaluate" and step.parts else 0
        )
        if wanted > config.context:
            place = _place_of(plan, step)
            text = f"{place}: max_new_tokens is {wanted}, but the model's context is {config.context}."
            yield Finding("warning", text, "Completions end where the context does.")


def _room(estimates: Sequence[Estimate], folder: Path | None, device: str) -> Iterator[Finding]:
    """The largest memory and the disk space, against what there is."""
    if not estimates:
        return
    largest = max(estimates, key=lambda found: found.memory_bytes)
    disk = sum(found.disk_bytes for found in estimates)
    disk += max(found.disk_peak_bytes - found.disk_bytes for found in estimates)
    text = f"about {_size(largest.memory_bytes)} of memory at {largest.step}, {_size(disk)} of disk in all (estimates)."
    available = _available_bytes() if device == "cpu" else None
    if available is not None and largest.memory_bytes > available:
        fix = "Lower micro_batch, max_tokens, calibration.samples or evaluate.batch."
        yield Finding("warning", f"{text} This machine has {_size(available)} of memory free.", fix)
    else:
        yield Finding("note", text)
    if folder is not None:
        there = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
        free = shutil.disk_usage(there).free
        if disk > free:
            fix = "Free some space or choose another folder with -o."
            yield Finding("error", f"'{folder}' needs about {_size(disk)}; {_size(free)} are free there.", fix)


def _data(plan: Plan) -> Iterator[Finding]:
    """Missing files, domains that do not match, and training on what is evaluated."""
    for step in plan.steps:
        for use in _with_parts(step):
            for option, file in data_files(use.options):
                if not Path(file).expanduser().exists():
                    text = f"{_place_of(plan, step)}: {use.card.name}.{option}: there is no file '{file}'."
                    yield Finding("error", text, f"Paths are relative to {Path.cwd()}.")
        own_data = step.stage == "evaluate" and not step.parts and getattr(step.settings, "options", {}).get("data")
        if own_data and not Path(own_data).expanduser().exists():
            text = f"{_place_of(plan, step).at('data')}: there is no file '{own_data}'."
            yield Finding("error", text, f"Paths are relative to {Path.cwd()}.")
    yield from _domains(plan)
    for keys, place in _data_keys(plan):
        if keys.split == "test":
            text = f"{place.at('split')}: this reads the test split."
            yield Finding("warning", text, "Scores on that data will say nothing; use train.")


def _domains(plan: Plan) -> Iterator[Finding]:
    """Data of another domain than what is evaluated."""
    learned: dict[str, str] = {}
    evaluated: dict[str, str] = {}
    for step in plan.steps:
        if step.stage in ("calibrate", "train") and _domain(step.parts["source"]):
            learned["calibration" if step.stage == "calibrate" else step.variant] = _domain(step.parts["source"])
        if step.stage == "evaluate" and "task" in step.parts and _domain(step.parts["task"]):
            evaluated[step.parts["task"].card.name] = _domain(step.parts["task"])
    mixed = len(set(learned.values())) > 1
    missed = evaluated and learned and not set(learned.values()) & set(evaluated.values())
    if mixed or missed:
        shown = ", ".join(f"{name}: {domain}" for name, domain in (learned | evaluated).items())
        fix = "With one domain throughout, training converges sooner and often ends higher (arXiv 2601.14888)."
        yield Finding("warning", f"the domains of data and tasks differ ({shown}).", fix)


def _training(plan: Plan, processes: int) -> Iterator[Finding]:
    for index, keys in enumerate(plan.recipe.train):
        place = plan.place.at("train", index)
        try:
            split_batch(keys.batch, keys.micro_batch, processes)
        except UnevenBatch as error:
            yield Finding("error", f"{place.at(error.key)}: {error.message}", error.hint)
        for name, value, known in (("schedule", keys.schedule, SCHEDULES), ("optimizer", keys.optimizer, OPTIMIZERS)):
            if value not in known:
                near = nearest(value, known)
                fix = f"Did you mean '{near}'?" if near else f"Known: {', '.join(known)}."
                yield Finding("error", f"{place.at(name)}: '{value}' is not known.", fix)
        if keys.save_every > keys.steps:
            text = f"{place.at('save_every')}: no checkpoint within {keys.steps} steps; interrupted, it starts over."
            yield Finding("note", text)


def _context(plan: Plan, offline: bool) -> Context:
    """What the options of an exporter are checked against; empty where the model cannot be read, told elsewhere."""
    try:
        config, keys = read_config(plan.model, offline=offline), plan.recipe.quantize
        chosen = choose_layers(
            config.linears, plan.scheme, skip=keys.skip, indivisible=keys.indivisible, head=config.head
        )
    except RqatError:
        return Context(schemes={str(number): scheme for number, scheme in enumerate(plan.scheme.different)})
    shape = ModelShape(
        plan.model.path,
        config.model_type,
        config.linears,
        config.hidden,
        config.vocab,
        config.blocks,
        config.tied,
        config.context,
    )
    return Context(schemes={name: plan.scheme.of(name) for name in chosen}, model=shape)


def _parts(plan: Plan, offline: bool) -> Iterator[Finding]:
    yield from _grids(plan)
    for step in plan.steps:
        exporter = step.parts.get("exporter")
        if exporter:
            for problem in exporter.options.check(_context(plan, offline)):
                place = plan.place.at("export", problem.key) if problem.key else plan.place.at("export")
                yield Finding(problem.level, f"{place}: {problem.text}", problem.hint)
    if plan.recipe.train and not plan.recipe.evaluate:
        yield Finding("note", "nothing is evaluated: the report will show losses only.", "Add `evaluate:`.")


def _grids(plan: Plan) -> Iterator[Finding]:
    """Parts that cannot do a scheme's grid, and what grids without kernels cost."""
    registry, schemes = Registry.current(), plan.scheme.different
    for step in plan.steps:
        for use in step.parts.values():
            for problem in part_problems(registry, use.card, schemes):
                yield Finding(problem.level, f"{_place_of(plan, step).at(problem.key)}: {problem.text}", problem.hint)
    for problem in cost_notes(registry, schemes) if plan.recipe.train else ():
        yield Finding(problem.level, f"{plan.place.at('scheme')}: {problem.text}", problem.hint)


def _with_parts(step: Step) -> Iterator[Use]:
    waiting = list(step.parts.values())
    while waiting:
        use = waiting.pop()
        yield use
        waiting += [part for part, _ in use.parts]


def _domain(use: Use) -> str:
    """Domain of a part; of a mixture, that of its heaviest part."""
    if use.card.domain or not use.parts:
        return use.card.domain
    return _domain(max(use.parts, key=lambda part: part[1])[0])


def _data_keys(plan: Plan) -> Iterator[tuple[DataKeys, Place]]:
    if plan.recipe.calibration is not None:
        yield plan.recipe.calibration, plan.place.at("calibration")
    for index, keys in enumerate(plan.recipe.train):
        yield keys.data, plan.place.at("train", index, "data")


def _place_of(plan: Plan, step: Step) -> Place:
    """Where the recipe asks for a step."""
    recipe: Mapping[str, object] = {"calibration": plan.recipe.calibration, "quantize": plan.recipe.quantize}
    for key, keys in recipe.items():
        if step.settings is keys:
            return plan.place.at(key)
    for key in ("compare", "train", "evaluate"):
        for index, keys in enumerate(getattr(plan.recipe, key)):
            if step.settings is keys:
                return plan.place.at(key, index)
    return plan.place.at("export")


def _available_bytes() -> int | None:
    """Memory that is free for use, in bytes; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _size(count: float) -> str:
    """Bytes as megabytes or gigabytes (powers of ten)."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
