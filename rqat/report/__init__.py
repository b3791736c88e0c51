"""What a run tells of itself, made from the files in its folder alone.

plan.json and recipe.yaml are written before the first step, summary.json, manifest.json and report.html at the end;
`refresh` writes report.html anew at any other moment.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..job import Job

REPORT = "report.html"

log = logging.getLogger("rqat")


def digest_of(summary: Any) -> str:
    """What the run's manifest says of its summary, so that one that somebody has changed is known."""
    from ..storage import fingerprint_of

    return fingerprint_of(summary)


def begin(job: Job) -> None:
    """Writes what the run is to do, before its first step."""
    from .planned import write_plan

    write_plan(job)


def write(job: Job) -> dict[str, Any]:
    """Writes the three files into the run folder.

    Returns:
        contents of summary.json.
    """
    from ..storage import write_json, write_text
    from .manifest import manifest_of
    from .page import page
    from .planned import is_written
    from .run_files import read_run
    from .summary import summary_of

    if not is_written(job):
        begin(job)
    run = read_run(job)
    summary = summary_of(run)
    manifest = manifest_of(run) | {"summary": digest_of(summary)}
    write_json(job.folder / "manifest.json", manifest)
    write_text(job.folder / REPORT, page(run, summary, manifest))
    _tell(job, summary, run.plan)
    # Last: the pipeline takes a run without a summary for one whose report is still to be written.
    write_json(job.folder / "summary.json", summary)
    return summary


def _tell(job: Job, summary: dict[str, Any], plan: dict[str, Any]) -> None:
    """Has the cards of the run's checkpoints say what the run has found; not those of earlier versions, which are
    hashed with the results."""
    from ..intact import read_manifest
    from ..stages import stages, work_of
    from ..storage import sweep

    for step in job.plan.steps:
        stage = stages().get(step.stage)
        folder = job.result_of(step.name)
        if stage is not None and stage.card and (folder / stage.card).is_file():
            manifest = read_manifest(folder)
            if manifest is not None and stage.card not in manifest["files"]:
                sweep((folder / stage.card).parent)  # of a card whose writing was interrupted
                work_of(step.stage).tell(job, step, summary, plan)


def write_report(folder: Path, *, running: bool | None = None) -> Path:
    """Writes report.html of a run anew, from what lies in its folder: finished, stopped, or going on.

    Args:
        running: whether it goes on; None: if a process holds the folder's lock.

    Raises:
        RunError: the folder cannot be written.
    """
    from ..storage import write_text
    from .manifest import manifest_of
    from .page import page
    from .run_files import read_folder
    from .summary import summary_of

    run = read_folder(folder, running=running)
    write_text(folder / REPORT, page(run, summary_of(run), manifest_of(run)))
    return folder / REPORT


def refresh(folder: Path, *, running: bool | None = None) -> None:
    """`write_report` for a run at work, which nothing that is wrong with its report may end."""
    try:
        write_report(folder, running=running)
    except Exception as error:
        log.debug("%s was not written: %s", folder / REPORT, error, exc_info=True)
