"""Writes docs/reference/{cli,recipe-keys,hooks,performance}.md; `--check` only says whether they are up to date.

The first three come from the code, the last one from the results in kernels/bench/results.

python docs/generate.py
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parent / "reference"
NOTE_RESULTS = "<!-- Written by docs/generate.py from kernels/bench/results; measure again instead of editing. -->\n\n"
NOTE = "<!-- Written by docs/generate.py; edit the docstrings instead. -->\n\n"


def hooks_page() -> str:
    """Every hook with its signature and docstring, and the callback it receives."""
    from rqat import hookspecs

    lines = ["# Hooks\n", NOTE, _code(inspect.getdoc(hookspecs) or "")]
    for name, function in vars(hookspecs).items():
        if name.startswith("register_") and inspect.isfunction(function):
            lines += [f"\n## {name}\n", f"`{name}{inspect.signature(function)}`\n", f"{inspect.getdoc(function)}\n"]
            protocol = getattr(
                hookspecs, f"Register{name.removeprefix('register_').removesuffix('s').capitalize()}", None
            )
            if protocol is not None:
                signature = str(inspect.signature(protocol.__call__)).replace("(self, ", "(")
                lines += [f"`register{signature}`\n", _code(inspect.getdoc(protocol) or "")]
    lines += ["\n## What a plugin implements\n", "The classes are in `rqat/contracts/`; import them from `rqat`.\n"]
    from rqat import contracts

    for kind in (contracts.Quantizer, contracts.Objective, contracts.Source, contracts.Task, contracts.Exporter):
        lines += [f"\n### {kind.__name__}\n", f"{inspect.getdoc(kind)}\n"]
        for name, method in vars(kind).items():
            if not name.startswith("_") and inspect.isfunction(method):
                lines += [f"\n`{name}{inspect.signature(method)}`\n", _code(inspect.getdoc(method) or "")]
    return "\n".join(lines)


def keys_page() -> str:
    """Every key of a recipe with type, default and meaning, then the options of every built-in plugin."""
    from rqat import keys
    from rqat.registry import Registry

    sections = [
        ("recipe", keys.Recipe),
        ("model, train[].teacher", keys.ModelKeys),
        ("calibration", keys.CalibrationKeys),
        ("quantize, compare[]", keys.QuantizeKeys),
        ("train[]", keys.TrainKeys),
        ("train[].data", keys.DataKeys),
        ("train[].rewards", keys.RewardKeys),
        ("train[].gate", keys.GateKeys),
        ("export", keys.ExportKeys),
        ("evaluate[]", keys.EvaluateKeys),
    ]
    lines = ["# Recipe keys\n", NOTE, "Options of plugins stand beside these keys, in the same mapping.\n"]
    for title, model in sections:
        lines += [f"\n## {title}\n", _table(model)]
    for kind in ("quantizer", "objective", "reward", "source", "task", "exporter"):
        for card in Registry.discover().cards(kind):
            lines += [f"\n## {kind} {card.name}\n", f"{card.summary}\n", _table(card.options)]
    return "\n".join(lines)


def cli_page() -> str:
    """Every command and option, as Typer documents them."""
    import typer
    from typer.cli import get_docs_for_click

    from rqat.cli.app import build

    command = typer.main.get_command(build())
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="rqat"), name="rqat", title="Commands")
    return NOTE + text


def performance_page() -> str:
    """Every figure measured on a GPU, from the CSV files of the bench."""
    return NOTE_RESULTS + _bench().page()


def performance_plots() -> dict[str, str]:
    """The plots on that page, by file name."""
    return _bench().plots()  # type: ignore[no-any-return]


def _bench() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
    try:
        from bench import page
    finally:
        del sys.path[0]
    return page


def _table(model: type) -> str:
    """A pydantic model as a table; meanings come from the docstring's `Attributes:`."""
    meanings: dict[str, str] = {}
    for ancestor in reversed(model.__mro__):
        own = ancestor.__module__.startswith("rqat")
        meanings |= _attributes(inspect.cleandoc(ancestor.__doc__ or "") if own else "")
    rows = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        kind = re.sub(r"(typing|rqat(\.\w+)+|rqat_\w+(\.\w+)*)\.", "", kind).replace("|", "\\|")
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        if "Keys" in default:
            default = "see below"
        rows.append(f"| `{name}` | {kind} | {default} | {meanings.get(name, '')} |")
    if not rows:
        return "No options.\n"
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _attributes(docstring: str) -> dict[str, str]:
    """`name: meaning` entries of a docstring's Attributes section."""
    section = docstring.partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    current = ""
    for line in section.splitlines():
        if entry := re.match(r" {4}(\w+): (.*)", line):
            current = entry[1]
            found[current] = entry[2]
        elif current and line.startswith("        "):
            found[current] += " " + line.strip()
        elif line.strip():
            break
    return found


def _code(text: str) -> str:
    return f"```text\n{text}\n```\n"


PAGES = {"cli.md": cli_page, "recipe-keys.md": keys_page, "hooks.md": hooks_page, "performance.md": performance_page}


def main() -> int:
    """Writes the pages, or with `--check` lists those that differ; 1 when any does."""
    stale = []
    texts = {name: page() for name, page in PAGES.items()} | performance_plots()
    for name, text in texts.items():
        path = REFERENCE / name
        text = text.rstrip() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    print("\n".join(f"docs/reference/{name}" for name in stale) or "up to date")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
