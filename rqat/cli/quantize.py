"""`rqat quantize`: one model, one method, one checkpoint that servers load; no recipe needed.

The work is done in a hidden folder beside OUT, and resumes there when it was interrupted. OUT appears when the
checkpoint is whole, and holds nothing else than it and `rqat.json`, which says what it was made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..contracts.options import LAST_SEED
from ..errors import RecipeError, RunError
from ..figures import seconds
from . import display, options
from .beside import WORK, hand_over, run_in, work_beside
from .device import Device
from .values import pairs, source, with_options

if TYPE_CHECKING:
    from ..job import Job
    from ..plan import Plan
    from ..registry import Registry

RECORD = "rqat.json"
"""File of a finished checkpoint that says what it was made from."""


def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub name, or builtin:tiny-reasoner.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="Folder of the finished checkpoint.")],
    method: Annotated[
        str,
        typer.Option(
            help="Quantizer, behind the transforms of plugins if any (TRANSFORM,gptq); `rqat plugins ls` lists them."
        ),
    ] = "gptq",
    scheme: Annotated[
        str, typer.Option(help="Weight grid: w2g128, w3g64-sym, w4-row, ..., or a mapping of patterns to such.")
    ] = "w4g128",
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Choose a width for every layer that --scheme does not name, so that the file takes at most this: "
            "420MB, or 2.8bits per parameter in all.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Data the quantizer sees: NAME, NAME:KEY=VALUE,..., or a file."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Calibration sequences.")] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens per calibration sequence.")] = 512,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Order of the calibration data.")] = 0,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Option of the quantizer, e.g. damp=0.02.")
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="PATTERN", help="Layers to leave as they are, e.g. '*.down_proj'."),
    ] = None,
    skip_indivisible: Annotated[
        bool, typer.Option("--skip-indivisible", help="Leave layers as they are that do not split into whole groups.")
    ] = False,
    format: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="Checkpoint format: NAME, or NAME:KEY=VALUE,..., e.g. gguf:types=k."
        ),
    ] = "compressed-tensors",
    device: Device = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Quantize a model without training. Writes a checkpoint that servers load."""
    from ..keys import ModelKeys
    from ..stages.quantize.command import quantize_plan
    from ..yaml_lines import parse_value

    for flag in ("samples", "tokens", "seed"):
        given_here = getattr(context.get_parameter_source(flag), "name", "") == "COMMANDLINE"
        if calibration is None and given_here:
            raise RecipeError(f"--{flag} is about calibration, and there is none; give --calibration SOURCE.")
    given = pairs(option or [], "--option")
    name, written = with_options(format, "--format")
    plan = quantize_plan(
        context.obj.registry,
        ModelKeys(path=model, revision=revision, trust_remote_code=trust_remote_code),
        method,
        scheme=parse_value(scheme, "--scheme") if scheme.lstrip().startswith("{") else scheme,
        calibration=_calibration(calibration, samples, tokens, seed),
        options={
            "skip": list(skip or ()),
            "indivisible": "skip" if skip_indivisible else "error",
            **given,
        },
        export={"format": name, **written},
        budget=budget,
        flags={
            **{("quantize", name): f"--option {name}" for name in given},
            ("quantize", "skip"): "--skip",
            ("quantize", "indivisible"): "--skip-indivisible",
            ("calibration", "samples"): "--samples",
            ("calibration", "tokens"): "--tokens",
            ("calibration", "seed"): "--seed",
            ("export",): "--format",
            **{("export", key): f"--format {key}" for key in written},
        },
    )
    record = _finished(out, plan)
    if record is None:
        record = _run(plan, out, context.obj.registry, offline=context.obj.offline)
        display.note(f"Wrote {out} in {seconds(record['seconds'])}.")
    else:
        display.note(f"'{out}' is finished already; nothing to do.")
    if as_json:
        display.print_json(record)


def _run(plan: Plan, out: Path, registry: Registry, *, offline: bool) -> dict[str, Any]:
    """Runs the plan beside `out`, then gives its last step that name."""
    from .plan import check

    with work_beside(out, worth_keeping=["*/manifest.json", "*.partial/.resume/*.safetensors"]) as work:
        told = check(plan, work, offline=offline)
        return _published(run_in(work, plan, registry, offline=offline, told=told), out)


def _published(job: Job, out: Path) -> dict[str, Any]:
    """Gives the finished checkpoint its name, with a record of how it came about, which is returned."""
    from ..storage import read_json, write_json

    plan = job.plan
    export = plan.steps[-1]
    (checkpoint,) = plan.checkpoints(job.folder)
    manifests = {step.name: read_json(job.result_of(step.name) / "manifest.json") for step in plan.steps}
    record = {
        "out": str(out),
        "model": plan.model.path,
        "scheme": plan.spelled,
        "fingerprint": plan.fingerprint(export),
        "facts": plan.facts(export),
        "told": [*job.told, *(text for manifest in manifests.values() for text in manifest.get("told", ()))],
        "steps": {name: manifest["results"] for name, manifest in manifests.items()},
        "seconds": round(sum(manifest["seconds"] for manifest in manifests.values()), 3),
    }
    write_json(checkpoint / RECORD, record)
    hand_over(checkpoint, out, RECORD)
    return record


def _finished(out: Path, plan: Plan) -> dict[str, Any] | None:
    """What `out` says it was made from, if that is this very plan; None if it is still to be written.

    Raises:
        RunError: `out` holds something else.
    """
    from ..facts import difference
    from ..storage import read_json

    if not out.exists():
        return None
    if not out.is_dir():
        raise RunError(f"'{out}' is a file.", hint="Choose another folder with -o.")
    record = read_json(out / RECORD)
    if not any(out.iterdir()) or (not record and (out / WORK).is_dir()):  # nothing, or what an interruption left
        return None
    if not record or "fingerprint" not in record:
        raise RunError(f"'{out}' holds something else already.", hint="Choose an empty or new folder with -o.")
    export = plan.steps[-1]
    if record["fingerprint"] != plan.fingerprint(export):
        changes = difference(record["facts"], plan.facts(export))
        raise RunError(
            f"'{out}' holds a checkpoint made another way: {'; '.join(changes[:6])}.",
            hint="Choose another folder with -o, or remove this one.",
        )
    return record


def _calibration(text: str | None, samples: int, tokens: int, seed: int) -> dict[str, Any] | None:
    """The `calibration` mapping of a recipe from the flags; None when there is no source."""
    if text is None:
        return None
    return {"samples": samples, "tokens": tokens, "seed": seed, **source(text, "--calibration")}
