"""Writes docs/reference/{cli,recipe-keys,hooks,performance}.md; `--check` only says whether they are up to date.

The first three come from the code, the last one from the results in kernels/bench/results. The tutorial on plugins
shows files; they are put into it anew, as is the table of servers into the page on serving.

python docs/generate.py
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
EXAMPLES = ROOT / "docs" / "examples" / "hooks"
NOTE_RESULTS = "<!-- Written by docs/generate.py from kernels/bench/results; measure again instead of editing. -->\n\n"
NOTE = "<!-- Written by docs/generate.py; edit the docstrings instead. -->\n\n"


def hooks_page() -> str:
    """Every hook with its `register`, the class behind it and an example; then all types that pass a hook."""
    from rqat import contracts, hookspecs
    from rqat.cards import KINDS, kind_of

    lines = ["# Hooks\n", NOTE, _code(inspect.getdoc(hookspecs) or "")]
    shown = set()
    for name, function in vars(hookspecs).items():
        if not (name.startswith("register_") and inspect.isfunction(function)):
            continue
        lines += [f"\n## {name}\n", f"`{name}{_signature(function)}`\n", f"{inspect.getdoc(function)}\n"]
        kind = kind_of(name)
        if kind in KINDS:
            protocol = getattr(hookspecs, f"Register{kind.capitalize()}")
            base = KINDS[kind].base
            shown.add(base.__name__)
            lines += [f"`register{_signature(protocol.__call__)}`\n", _code(inspect.getdoc(protocol) or "")]
            lines += [*_class(base)]
        file = EXAMPLES / f"my_{kind}.py"
        lines += [f"\n`{file.relative_to(ROOT)}`:\n", f"```python\n{file.read_text(encoding='utf-8')}```\n"]
    lines += ["\n## Types\n", "What passes between a plugin and rqat. All are in `rqat`; shapes by the letters\n"]
    lines += [_code((inspect.getdoc(contracts) or "").partition("\n\n")[2].partition("\n\n")[2])]
    for name in sorted(set(contracts.__all__) - shown):
        lines += _class(getattr(contracts, name), name)
    return "\n".join(lines)


def _class(kind: Any, name: str = "") -> list[str]:
    """A class with its docstring, its methods and theirs; of another type what it is."""
    if not inspect.isclass(kind):
        return [f"\n### {name}\n", f"`{name} = {_type(kind)}`\n"]
    lines = [f"\n### {kind.__name__}\n", _code(inspect.getdoc(kind) or "")]
    for name, method in vars(kind).items():
        function = method.fget if isinstance(method, property) else getattr(method, "__func__", method)
        if (name.startswith("_") and name != "__call__") or not inspect.isfunction(function):
            continue
        signature = "" if isinstance(method, property) else _signature(function)
        lines += [f"`{name}{signature}`\n"]
        if function.__doc__:
            lines += [_code(inspect.getdoc(function) or "")]
    return lines


def _signature(function: Any) -> str:
    """As it is written, without `self`."""
    whole = inspect.signature(function)
    parameters = [parameter for name, parameter in whole.parameters.items() if name not in ("self", "cls")]
    text = str(whole.replace(parameters=parameters))
    text = re.sub(r"""(: |-> )(['"])(.*?)\2""", r"\1\3", text)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)


def _type(kind: Any) -> str:
    return str(kind).replace("typing.", "")


def tutorial_page() -> str:
    """The tutorial as it stands, with the files it shows as they are now."""
    page = (ROOT / "docs" / "tutorial" / "write-a-plugin.md").read_text(encoding="utf-8")
    return re.sub(r"(<!-- file: (\S+) -->\n```(\w+)\n).*?```", _filled, page, flags=re.DOTALL)


def _filled(block: re.Match[str]) -> str:
    return f"{block[1]}{(ROOT / block[2]).read_text(encoding='utf-8')}```"


def serve_page() -> str:
    """The page on servers as it stands, with the table of what they did."""
    page = (ROOT / "docs" / "howto" / "serve.md").read_text(encoding="utf-8")
    table = f"<!-- servers -->\n{_servers()}\n<!-- /servers -->"
    return re.sub(r"<!-- servers -->.*<!-- /servers -->", lambda _: table, page, flags=re.DOTALL)


def _servers() -> str:
    """Every trial of a server; groups that went alike share a line."""
    from rqat.scheme import ROW
    from rqat.servers import Trial, trials

    alike: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials():
        key = (trial.server, trial.version, trial.format, trial.bits, trial.symmetric, trial.loads, trial.words)
        alike.setdefault(key, []).append(trial)
    lines = ["| server | format | bits | zero points | groups | | difference |", "|---|---|---|---|---|---|---|"]
    for (server, version, form, bits, symmetric, loads, words), found in alike.items():
        groups = ", ".join("row" if one.group == ROW else str(one.group) for one in found)
        measured = [one.difference for one in found if one.difference is not None]
        most = f"{max(measured):.2g}" if measured else ""
        what = "loads" if loads else f"refuses: {words}".replace("|", "\\|")
        read = " (*read*)" if found[0].read else ""
        zeros = "fixed" if symmetric else "free"
        lines.append(f"| {server} {version} | `{form}` | {bits} | {zeros} | {groups} | {what}{read} | {most} |")
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


PAGES = {
    "cli.md": cli_page,
    "recipe-keys.md": keys_page,
    "hooks.md": hooks_page,
    "performance.md": performance_page,
    "../tutorial/write-a-plugin.md": tutorial_page,
    "../howto/serve.md": serve_page,
}
"""Pages by their path from docs/reference."""


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
