"""Every built-in plugin works when it is copied out, unchanged, under another module name, and the original is left out.

That is what `rqat plugins new` promises: no plugin may import itself by name, and none may depend on being built in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rqat.registry import BUILTIN
from tests.plugin_maker import write_metadata

ROOT = Path(__file__).parents[1]

RUN = """
import json, logging, sys
from rqat.registry import KINDS, Registry
from rqat.testing import examine
logging.disable(logging.WARNING)
module, options = sys.argv[1], json.loads(sys.argv[2])
registry = Registry.discover()
assert not registry.broken, registry.broken
cards = [card for kind in KINDS for card in registry.cards(kind) if card.module == module]
assert {card.owner for card in cards} == {"rqat-copied-out"}, cards
for card in cards:
    for result in examine(registry, card, options.get(f"{card.kind} {card.name}")):
        print(json.dumps([f"{card.kind} {card.name}", result.test, result.error, result.skipped]))
original = module.replace("rqat_copied_", "rqat_")
assert not [name for name in sys.modules if name.partition(".")[0] == original], "the copy runs the original's code"
"""


def options_for(folder: Path) -> dict[str, dict[str, object]]:
    """Options of the parts that cannot do without."""
    lines = [{"question": f"What is {n} + {n}?", "solution": f"It is {2 * n}."} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "text.txt").write_text("\n\n".join(f"Paragraph number {n}." for n in range(60)))
    problems = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(20)]
    (folder / "math500.jsonl").write_text("".join(json.dumps(line) + "\n" for line in problems))
    gsm8k = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(60)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in gsm8k))
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in gsm8k))
    fields = {"prompt": "question", "completion": "solution"}
    return {
        "source jsonl": {"path": str(folder / "rows.jsonl"), "fields": fields},
        "source text": {"path": str(folder / "text.txt")},
        "source gsm8k": {"path": str(folder)},
        "source mix": {"parts": [{"source": "text", "path": str(folder / "text.txt")}]},
        "task math500": {"data": str(folder / "math500.jsonl")},
        "task gsm8k": {"data": str(folder / "test.jsonl")},
    }


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=pytest.mark.slow if name == "rqat_grpo" else ()) for name in BUILTIN]
)
def test_a_copy_passes_its_suite(module: str, tmp_path: Path):
    site, data = tmp_path / "site", tmp_path / "data"
    site.mkdir()
    data.mkdir()
    copied = module.replace("rqat_", "rqat_copied_", 1)
    if (ROOT / "plugins" / f"{module}.py").exists():
        shutil.copyfile(ROOT / "plugins" / f"{module}.py", site / f"{copied}.py")
    else:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "plugins" / module, site / copied, ignore=ignored)
    write_metadata(site, "rqat-copied-out", copied)
    paths = [site, ROOT, ROOT / "plugins", ROOT / "kernels"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "RQAT_DISABLE_PLUGINS": module,
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, copied, json.dumps(options_for(data))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert results
    failed = [result for result in results if result[2]]
    assert not failed, failed
    skipped = {result[0] for result in results if result[3]}
    assert skipped <= {"source hub"}, f"not run: {skipped}"  # a data set of the hub cannot be read offline
