"""Everything that would stop a run, or spoil it, found before torch is imported: one list, all at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .capacity import told
from .contracts import Context, Problem
from .contracts.options import became
from .errors import RqatError
from .facts import files_of
from .figures import size
from .grids import cost_notes, grid_cards, part_problems
from .keys import ModelKeys, PluginKeys
from .model.config import ModelConfig, read_config
from .model.extras import check_checkpoint, remarks
from .model.layers import EMBEDDING, described
from .overlap import overlaps
from .plan import Plan
from .read_once import LookedAt
from .registry import Registry
from .run_folder import taken_away
from .scheme import Scheme
from .stage import ORDER, Finding, Look, Step, Use
from .stages import stages, work_of

__all__ = ["Finding", "preflight", "read_data"]


def preflight(
    plan: Plan,
    *,
    folder: Path | None = None,
    fresh: bool = False,
    offline: bool = False,
    device: str = "cpu",
    processes: int = 1,
    machines: int = 1,
) -> list[Finding]:
    """Looks at a plan, the model's files, the data files and the disk; errors first.

    Args:
        folder: the run folder, for the check of disk space; None leaves it out.
        fresh: what the folder holds is thrown away before.
        offline: nothing may be fetched.
        device: "cpu" or "cuda", for the memory estimate.
        processes: how many work together.
        machines: that they are on, as many on each.
    """
    findings: list[Finding] = []
    config = None
    try:
        config = read_config(plan.model, offline=offline)
    except RqatError as error:
        findings.append(Finding("error", f"{plan.place.at('model')}: {error.message}", error.hint))
    tokenizer = cache(lambda: _tokenizer(plan.model, offline))
    look = Look(plan, config, device, processes, offline, folder, tokenizer=tokenizer)
    for step in plan.steps:
        findings += stages()[step.stage].check(step, look)
    findings += [step.finding("note", "", "nothing here needs it; it is left out.") for step in plan.unread]
    if config is not None:
        findings += _model(plan, config, device)
        findings += told(
            plan, config, device, offline=offline, processes=processes, machines=machines, folder=folder, fresh=fresh
        )
    for place, path in taken_away(plan, folder, fresh=fresh) if folder is not None else ():
        text = f"'{path}' lies in this run's own folder, which {'is emptied' if fresh else 'sets it aside'} before."
        findings.append(Finding("error", f"{place}: {text}", "Choose another folder with -o, or another `name`."))
    findings += _trust(plan)
    findings += _trackers(plan)
    findings += _files(plan)
    findings += _domains(plan)
    findings += _grids(plan, look)
    findings += _parts(plan, look)
    return sorted(dict.fromkeys(findings), key=lambda finding: ORDER[finding.level])


def read_data(
    plan: Plan, registry: Registry, *, done: Collection[str] = (), offline: bool = False, device: str = "cpu"
) -> list[Finding]:
    """Imports the class of every part, and reads the data of every step, fetching it if need be.

    Read are the rows it will use, up to a bound, and all problems.

    Not part of `preflight`, since it imports large libraries and may use the network.

    Args:
        done: names of steps whose data is needed no more.
    """
    try:
        config = read_config(plan.model, offline=offline)
    except RqatError:
        config = None  # which pre-flight tells
    parts = LookedAt(registry)
    look = Look(plan, config, device, offline=offline, parts=parts)
    findings = list(_classes(plan, registry, done))
    seen: set[tuple[str, int]] = set()
    # What a step will read of other steps is not there yet; the sources those are made of are read in their place.
    left_out = {*done, *(step.name for step in plan.steps if _reads_unwritten(step))}
    for step in plan.steps:
        alike = (step.stage, id(step.settings))
        skipped = step.name in left_out or alike in seen
        reads = None if skipped else getattr(work_of(step.stage), "read_ahead", None)
        seen.add(alike)
        if reads is None:
            continue
        try:
            findings += reads(step, look)
        except RqatError as error:
            findings.append(step.finding("error", "", error.message, error.hint))
    if not any(found.level == "error" for found in findings):
        findings += overlaps(plan, parts.make, left_out)
    return sorted(dict.fromkeys(findings), key=lambda finding: ORDER[finding.level])


def _classes(plan: Plan, registry: Registry, done: Collection[str]) -> Iterator[Finding]:
    """Parts whose class does not import or does not fit, which a run would come to know in the step that uses it."""
    for step in _with_own_parts(plan):
        for use in step.uses if step.name not in done else ():
            if not use.card.load:  # a task of lm-eval, which is read with its data
                continue
            try:
                registry.load_class(use.card)
            except RqatError as error:
                yield step.finding("error", "", error.message, error.hint)


def _with_own_parts(plan: Plan) -> list[Step]:
    """The steps whose parts no other step is asked about."""
    return [step for step in plan.steps if not stages()[step.stage].borrows]


def _reads_unwritten(step: Step) -> bool:
    """Whether a step learns from rows that another step is still to write."""
    roles = [role for role, name in step.inputs.items() if name in step.reads]
    return any(role.rpartition("-")[2] not in stages()[step.stage].beside for role in roles)


def _trust(plan: Plan) -> Iterator[Finding]:
    """A recipe, which may be somebody else's, cannot have a checkpoint's code run, nor a program, nor a key sent."""
    for keys in plan.place.origins:
        model: Any = reduce(_within, keys[:-1], plan.recipe)
        place = plan.place.at(*keys)
        # What the command line said is on no line.
        if keys[-1:] == ("trust_remote_code",) and place.line and getattr(model, "trust_remote_code", False):
            text = f"{place}: a recipe cannot allow a checkpoint's own code to run; only you can."
            yield Finding("error", text, f"If you trust it, add: --set {place.dotted}=true")
        if keys[-1:] == ("base_url",) and place.line and os.environ.get("OPENAI_API_KEY"):
            text = f"{place}: a recipe cannot have OPENAI_API_KEY sent to a server; only you can."
            yield Finding("error", text, f"Unset it; or, if you trust the server, add: --set {place.dotted}=URL")
    for use in (use for step in plan.steps for use in step.uses):
        for place in (use.place.at(name) for name in use.commands):
            if place.line:
                text = f"{place}: a recipe cannot name a program to be run; only you can."
                yield Finding("error", text, f"Leave it out of the recipe, and add: --set {place.dotted}='COMMAND'")


def _within(value: Any, key: str | int) -> Any:
    """What stands under a key of a recipe, or of what a plugin keeps as it is written; None where nothing does."""
    if isinstance(key, int):
        return value[key] if isinstance(value, Sequence) and key < len(value) else None
    return value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)


def _trackers(plan: Plan) -> Iterator[Finding]:
    """Trackers that are to be told of the training, and are not installed."""
    for name in plan.recipe.log:
        others = ("tensorboardX",) if name == "tensorboard" else ()
        if not any(find_spec(package) for package in (name, *others)):
            yield Finding("error", f"{plan.place.at('log')}: {name} is not installed.", f"pip install {name}")


def _model(plan: Plan, config: ModelConfig, device: str) -> Iterator[Finding]:
    place = plan.place.at("model")
    if config.folder is None:
        yield Finding("note", f"{place}: '{plan.model.path}' will be fetched from the hub, {size(config.bytes)}.")
    try:
        check_checkpoint(config)
        if config.folder is not None:
            config.vocabulary(offline=True)
    except RqatError as error:
        yield Finding("error", f"{place}: {error.message}", error.hint)
        return
    for problem in remarks(config, device):
        yield Finding(problem.level, f"{place}: {problem.text}", problem.hint)


def _files(plan: Plan) -> Iterator[Finding]:
    """Data files that are not there, or cannot be read more than once."""
    for step in _with_own_parts(plan):
        for part in step.parts.values():
            told = set[str]()  # a part may be made of one that reads the same file
            for use in part.all():
                missing = {
                    file: option
                    for option, file in files_of(use.options)
                    if not (file.path.is_file() or file.path.is_dir())
                }
                for file in (file for file in missing if file not in told):
                    wrong = f"there is no file '{file}'{became(file)}."
                    hint = f"Paths are relative to {Path.cwd()}."
                    if file.path.exists():  # as the shell's <(...) is
                        wrong = f"'{file}' is a pipe or a device, which can be read only once."
                        hint = "Write what it holds into a file, and name that."
                    text = f"{use.card.name}.{missing[file]}: {wrong}"
                    yield Finding("error", f"{step.place_of(use)}: {text}", hint)
                told |= missing.keys()


def _domains(plan: Plan) -> Iterator[Finding]:
    """Data of another domain than what is evaluated."""
    learned: dict[str, str] = {}
    evaluated: dict[str, str] = {}
    produced = {name for step in plan.steps for name in step.reads}
    for step in plan.steps:
        if step.name in produced:  # its rows count where they are read
            continue
        if "source" in step.parts:
            if domain := _domain(step.parts["source"]):
                learned[stages()[step.stage].label(step)] = domain
        elif "task" in step.parts and (domain := step.parts["task"].card.domain):
            evaluated[step.parts["task"].card.name] = domain
    mixed = len(set(learned.values())) > 1
    missed = evaluated and learned and not set(learned.values()) & set(evaluated.values())
    if mixed or missed:
        shown = ", ".join(f"{name}: {domain}" for name, domain in (learned | evaluated).items())
        fix = "With one domain throughout, training converges sooner and often ends higher (arXiv 2601.14888)."
        yield Finding("warning", f"the domains of data and tasks differ ({shown}).", fix)


def _domain(use: Use) -> str:
    """Domain of a part; of a mixture, that of its heaviest part."""
    if use.card.domain or not use.sources:
        return use.card.domain
    return _domain(max(use.sources, key=lambda part: part[1])[0])


def _grids(plan: Plan, look: Look) -> Iterator[Finding]:
    """Parts that cannot do a scheme's grid, what a grid has against it, and what training without kernels costs."""
    registry = Registry.current()
    for step in _with_own_parts(plan):
        schemes = _schemes(step, look)
        for use in step.uses:
            for problem in part_problems(registry, use.card, schemes):
                yield step.finding(problem.level, problem.key, problem.text, problem.hint)
        if "quantizer" in step.parts:
            context = context_of(step, look)
            for card in grid_cards(registry, schemes):
                own = {name: scheme for name, scheme in context.schemes.items() if scheme.grid == card.name}
                for problem in _checked(Use(card, card.options()), replace(context, schemes=own)):
                    text = f"{plan.place.at('scheme')}: '{card.name}': {problem.text}"
                    yield Finding(problem.level, text, problem.hint)
        for problem in cost_notes(registry, schemes) if "objective" in step.parts else ():
            yield Finding(problem.level, f"{plan.place.at('scheme')}: {problem.text}", problem.hint)


def _schemes(step: Step, look: Look) -> list[Scheme]:
    """Those of the recipe; for a model that has brought its own, those."""
    own = look.plan.known_schemes(step, look.config) or {}
    return list(dict.fromkeys(own.values() or look.plan.scheme.different))


def _parts(plan: Plan, look: Look) -> Iterator[Finding]:
    """What the parts of every step have against their options on this model: `rqat.Options.check`."""
    for step in _with_own_parts(plan):
        context = context_of(step, look)
        for use in step.uses:
            for problem in _checked(use, context):
                about = f"'{use.card.name}': " if not problem.key else ""
                own = use.place.keys and problem.key.split(".")[0] in type(use.options).model_fields
                written = replace(step, place=use.place) if own else step
                yield written.finding(problem.level, problem.key, f"{about}{problem.text}", problem.hint)


def _checked(use: Use, context: Context) -> Iterable[Problem]:
    try:
        return list(use.options.check(context))
    except RqatError as error:
        return [Problem(error.message, error.hint)]


def context_of(step: Step, look: Look) -> Context:
    """What a step's parts see when they are checked."""
    config = look.config
    schemes = {} if config is None else look.plan.known_schemes(step, config)
    if schemes is None:  # every scheme is looked at, on no layer in particular
        schemes = {str(number): scheme for number, scheme in enumerate(look.plan.scheme.different)}
    exporter = step.parts.get("exporter")
    if exporter is not None and not exporter.card.embedding:
        schemes = {name: scheme for name, scheme in schemes.items() if name != EMBEDDING}
    return Context(
        settings=_settings(step),
        schemes=schemes,
        model=described(config, schemes) if config is not None else None,
        processes=look.processes,
        device=look.device,
        tokenizer=look.tokenizer,
    )


def _settings(step: Step) -> dict[str, Any]:
    keys = step.settings
    options = keys.options if isinstance(keys, PluginKeys) else {}
    return {name: value for name, value in keys.model_dump(mode="json").items() if name not in options}


def _tokenizer(keys: ModelKeys, offline: bool) -> Any:
    from .model.load import load_tokenizer

    return load_tokenizer(keys, offline=offline)
