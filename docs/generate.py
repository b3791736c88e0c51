"""Writes docs/reference/{cli,recipe-keys,hooks,performance}.md; `--check` only says whether they are up to date.

The first three come from the code, the last one from the results in kernels/bench/results.

python docs/generate.py
"""

from __future__ import annotations

import inspect
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
    from rqat.recipe import Recipe
    from rqat.registry import Registry

    lines = ["# Recipe keys\n", NOTE, "Options of plugins stand beside these keys, in the same mapping.\n"]
    for model, places in _mappings(Recipe).items():
        lines += [f"\n## {', '.join(places) or 'recipe'}\n", _table(model)]
    for card in Registry.discover().all_cards():
        if card.owner == "rqat":
            lines += [f"\n## {card.kind} {card.name}\n", f"{card.summary}\n", _table(card.options)]
    return "\n".join(lines)


def _mappings(model: type, place: str = "", found: dict[type, list[str]] | None = None) -> dict[type, list[str]]:
    """Every mapping of a recipe, with where it may stand: `train[].data`."""
    from rqat.problems import is_list, model_at

    found = {} if found is None else found
    found.setdefault(model, []).extend([place] if place else [])
    for name, field in model.model_fields.items():
        inner = model_at(model, (name,))
        if inner is not None:
            where = f"{place}.{name}" if place else name
            _mappings(inner, where + ("[]" if is_list(field.annotation) else ""), found)
    return found


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
    """A pydantic model as a table."""
    from rqat.describe import field_rows

    rows = []
    for field in field_rows(model):
        default = f"`{field.default}`" if field.default else "required"
        if "Keys" in default:
            default = "see below"
        rows.append(f"| `{field.name}` | {field.type.replace('|', chr(92) + '|')} | {default} | {field.meaning} |")
    if not rows:
        return "No options.\n"
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


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
