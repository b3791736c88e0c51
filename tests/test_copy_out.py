"""Every built-in plugin works when copied out, unchanged, under another module name, with the original left out.

That is what `rqat plugins new` promises: no plugin may import itself by name, and none may depend on being built in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from rqat.registry import BUILTIN
from tests.plugin_maker import write_metadata

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

RUN = """
import json, logging, sys
from rqat.registry import BUILTIN, KINDS, Registry
from rqat.testing import examine
logging.disable(logging.WARNING)
options = json.loads(sys.argv[1])
registry = Registry.discover()
assert not registry.broken, registry.broken
assert sorted(registry.disabled) == sorted(BUILTIN)
for card in (card for kind in KINDS for card in registry.cards(kind)):
    assert card.owner.startswith("rqat-copied-"), card
    for result in examine(registry, card, options.get(f"{card.kind} {card.name}")):
        print(json.dumps([card.module, f"{card.kind} {card.name}", result.test, result.error, result.skipped]))
originals = {name.partition(".")[0] for name in sys.modules} & set(BUILTIN)
assert not originals, f"copies run the code of {originals}"
"""


def options_for(folder: Path) -> dict[str, dict[str, object]]:
    """Options of the parts that cannot do without."""
    lines = [{"question": f"What is {n} + {n}?", "solution": f"It is {2 * n}."} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = ["question,solution", *(f"What is {n} + {n}?,It is {2 * n}." for n in range(60))]
    (folder / "rows.csv").write_text("".join(f"{line}\n" for line in table))
    (folder / "text.txt").write_text("\n\n".join(f"Paragraph number {n}." for n in range(60)))
    problems = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(20)]
    (folder / "math500.jsonl").write_text("".join(json.dumps(line) + "\n" for line in problems))
    gsm8k = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(60)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in gsm8k))
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in gsm8k))
    choices = {"Correct Answer": "it", **{f"Incorrect Answer {place}": f"not {place}" for place in (1, 2, 3)}}
    (folder / "gpqa.jsonl").write_text("".join(json.dumps({"Question": f"{n}?", **choices}) + "\n" for n in range(20)))
    tests = [{"input": f"{n}\n", "output": f"{2 * n}\n", "testtype": "stdin"} for n in range(2)]
    doubled = {"question_content": "Double it.", "public_test_cases": json.dumps(tests), "private_test_cases": "[]"}
    (folder / "programs.jsonl").write_text(json.dumps(doubled) + "\n")
    fields = {"prompt": "question", "completion": "solution"}
    return {
        "source jsonl": {"path": str(folder / "rows.jsonl"), "fields": fields},
        "source table": {"path": str(folder / "rows.csv"), "fields": fields},
        "source text": {"path": str(folder / "text.txt")},
        "source gsm8k": {"path": str(folder)},
        "source mix": {"parts": [{"source": "text", "path": str(folder / "text.txt")}]},
        "source traces": {"prompts": [{"source": "arith"}], "limit": 4, "max_new_tokens": 64},
        "source magpie": {"n": 12, "max_new_tokens": 24},
        "task kl": {"rows": [{"source": "arith"}]},
        "task math500": {"data": str(folder / "math500.jsonl")},
        "task aime120": {"data": str(folder / "math500.jsonl")},
        "task gpqa-diamond": {"data": str(folder / "gpqa.jsonl")},
        "task gsm8k": {"data": str(folder / "test.jsonl")},
        "task livecodebench": {"data": str(folder / "programs.jsonl"), "sandbox": f"{sys.executable} -I -"},
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Module, part, test, error and reason for skipping of every test of every copy; all run in one process."""
    site, data = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("data")
    for module in BUILTIN:
        copied = copied_name(module)
        if (ROOT / "plugins" / f"{module}.py").exists():
            shutil.copyfile(ROOT / "plugins" / f"{module}.py", site / f"{copied}.py")
        else:
            shutil.copytree(ROOT / "plugins" / module, site / copied, ignore=shutil.ignore_patterns("__pycache__"))
        write_metadata(site, copied.replace("_", "-"), copied)
    paths = [site, ROOT, ROOT / "plugins", ROOT / "kernels"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "RQAT_DISABLE_PLUGINS": ",".join(BUILTIN),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", RUN, json.dumps(options_for(data))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=site)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]


def copied_name(module: str) -> str:
    return module.replace("rqat_", "rqat_copied_", 1)


@pytest.mark.parametrize("module", BUILTIN)
def test_a_copy_passes_its_suite(results: list[list[str]], module: str):
    own = [result[1:] for result in results if result[0] == copied_name(module)]
    assert own
    failed = [(part, test, error) for part, test, error, _ in own if error]
    assert not failed, failed
    skipped = {part for part, _, _, skipped in own if skipped}
    # A data set of the hub cannot be read offline; a package outside the development extra may not be there.
    assert skipped <= {"source hub"} | ({"quantizer gptqmodel"} if find_spec("gptqmodel") is None else set()), skipped
