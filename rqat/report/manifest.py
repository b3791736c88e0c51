"""manifest.json of a run: every step with its facts and fingerprint, the versions of packages, the machine."""

from __future__ import annotations

from typing import Any

from .run_files import RunFiles


def manifest_of(run: RunFiles) -> dict[str, Any]:
    """Everything needed to tell how a run came about; "told" is what was known of the plan before it ran."""
    return {
        "name": run.name,
        "scheme": run.scheme,
        "rqat": run.plan["rqat"],
        "recipe": run.recipe,
        "told": run.plan["told"],
        "steps": [step.manifest for step in run.steps],
        "seconds": round(sum(step.seconds for step in run.steps), 3),
        "packages": run.plan["packages"],
        "machine": run.plan["machine"],
    }
