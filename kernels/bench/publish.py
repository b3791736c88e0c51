"""Puts the results of `run.py` into the repository: `python kernels/bench/publish.py DIR`.

The parts in DIR become `kernels/bench/results/<gpu>.csv`; then docs/reference/performance.md is written anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def publish(folder: Path, results: Path) -> list[Path]:
    """Joins the parts of each GPU in `folder` into one file in `results`; its ceilings are those of the first part."""
    parts: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*-part[123].csv")):
        parts.setdefault(re.sub(r"-part[123]\.csv$", "", path.name), []).append(path)
    written = []
    results.mkdir(parents=True, exist_ok=True)
    for name, paths in parts.items():
        lines: list[str] = []
        for path in paths:
            header, *rows = path.read_text(encoding="utf-8").splitlines()
            lines += rows if lines else [header, *rows]
        target = results / f"{name}.csv"
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
        written.append(target)
    return written


def main() -> int:
    """Publishes and writes the page."""
    written = publish(Path(sys.argv[1]), HERE / "results")
    print("\n".join(map(str, written)) or "no results there")
    root = HERE.parents[1]
    return subprocess.run([sys.executable, root / "docs" / "generate.py"], check=False).returncode if written else 1


if __name__ == "__main__":
    sys.exit(main())
