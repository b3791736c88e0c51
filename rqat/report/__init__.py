"""The end of a run: summary.json, manifest.json and report.html, made from the files in the run folder alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..job import Job


def digest_of(summary: Any) -> str:
    """What the run's manifest says of its summary, so that one that somebody has changed is known."""
    from ..storage import fingerprint_of

    return fingerprint_of(summary)


def write(job: Job) -> dict[str, Any]:
    """Writes the three files into the run folder.

    Returns:
        contents of summary.json.
    """
    from ..storage import write_json, write_text
    from .manifest import manifest_of
    from .page import page
    from .run_files import read_run
    from .summary import summary_of

    run = read_run(job)
    summary = summary_of(run)
    manifest = manifest_of(run, job.told) | {"summary": digest_of(summary)}
    write_json(job.folder / "manifest.json", manifest)
    write_text(job.folder / "report.html", page(run, summary, manifest))
    # Last: the pipeline takes a run without a summary for one whose report is still to be written.
    write_json(job.folder / "summary.json", summary)
    return summary
