"""`rqat recipes`: the recipes that come with rqat, to read, to copy and to check one's own against."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RqatError, RunError
from . import display, options

if TYPE_CHECKING:
    from ..registry import Registry

SCHEMA = "rqat.schema.json"
"""What a recipe's schema is called beside it."""


def app() -> typer.Typer:
    """The group of commands; `rqat recipes` alone is `rqat recipes ls`."""
    group = typer.Typer(help="List, show, copy and check recipes.", invoke_without_command=True, rich_markup_mode=None)

    @group.callback()
    def default(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            ls()

    for command in (ls, cat, cp, validate, schema):
        group.command(command.__name__)(command)
    return group


def ls(as_json: options.Json = False) -> None:
    """List the recipes that come with rqat."""
    from ..recipe import load_recipe, shipped_recipes
    from ..scheme import Schemes
    from ..stages import way

    found: list[dict[str, str]] = []
    for name, path in shipped_recipes().items():
        try:
            recipe = load_recipe(path).recipe
        except RqatError as error:
            found.append({"name": name, "path": str(path), "about": str(error)})
            continue
        found.append(
            {
                "name": name,
                "model": recipe.model.path,
                "scheme": recipe.scheme if isinstance(recipe.scheme, str) else str(Schemes.parse(recipe.scheme)),
                "stages": " > ".join(way(recipe)),
                "about": _first_comment(path),
                "path": str(path),
            }
        )
    if as_json:
        display.print_json(found)
        return
    columns = ("name", "model", "scheme", "stages", "about")
    display.table(columns, [[entry.get(column, "") for column in columns] for entry in found])
    typer.echo("See what one does: rqat plan NAME. Run it: rqat qat --recipe NAME. Edit it: rqat recipes cp NAME FILE.")


def cat(name: options.RecipeName) -> None:
    """Print a recipe as it is written."""
    from ..recipe import find_recipe

    text = find_recipe(name).read_text(encoding="utf-8")
    typer.echo(display.harmless(text) if sys.stdout.isatty() else text, nl=False)


def cp(
    context: typer.Context,
    name: options.RecipeName,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, or a folder to put it into.")],
    full: Annotated[
        bool, typer.Option("--full", help="With a value for every key and option, and nothing inherited.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help=f"With {SCHEMA} beside it, by which editors explain and check keys.")
    ] = False,
) -> None:
    """Copy a recipe to edit it; nothing is overwritten."""
    from ..recipe import find_recipe
    from ..recipe_schema import json_schema
    from ..storage import explained, write_json, write_text

    source = find_recipe(name)
    text = _written_out(source, context.obj.registry) if full else source.read_text(encoding="utf-8")
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise RunError(f"'{target}' exists already.", hint="Choose another name; nothing is overwritten.")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    if schema:
        write_json(target.parent / SCHEMA, json_schema(context.obj.registry))
        text = f"# yaml-language-server: $schema={SCHEMA}\n{text}"
    write_text(target, text)
    typer.echo(f"Wrote {target}. Next: rqat plan {target}")


def validate(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="RECIPE", help="Names or files.")],
    changes: options.Changes = None,
) -> None:
    """Check recipes. Names, keys and options of plugins; all problems at once."""
    from ..plan import build_plan
    from ..recipe import load_recipe

    failed = 0
    for name in names:
        try:
            plan = build_plan(load_recipe(name, changes or ()), context.obj.registry)
        except RqatError as error:
            if len(names) == 1:
                raise
            failed += 1
            display.note(str(error))
        else:
            typer.echo(f"{name}: good, {len(plan.steps)} steps")
    if failed:
        raise typer.Exit(2)


def schema(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write it there.")] = None,
) -> None:
    """Print the JSON schema of a recipe. For editors that explain keys, and check YAML while you type."""
    from ..recipe_schema import json_schema
    from ..storage import write_json

    found = json_schema(context.obj.registry)
    if out is None:
        display.print_json(found)
        return
    write_json(out, found)
    typer.echo(f"Wrote {out}. First line of a recipe beside it: # yaml-language-server: $schema={out.name}")


def _written_out(source: Path, registry: Registry) -> str:
    """A recipe with a value for every key, under the comment it begins with."""
    import yaml

    from .. import __version__
    from ..filled import filled
    from ..plan import build_plan
    from ..recipe import load_recipe

    values = filled(build_plan(load_recipe(source), registry))
    lines = source.read_text(encoding="utf-8").splitlines()
    head = [*itertools.takewhile(lambda line: line.startswith("#"), lines), f"# Every value as of rqat {__version__}."]
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    return "\n".join([*head, "", text])


def _first_comment(path: Path) -> str:
    """First line of a recipe's header comment."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
