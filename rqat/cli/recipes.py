"""`rqat recipes`: the recipes that come with rqat, to read, to copy and to check one's own against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import RqatError, RunError
from . import display, options


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

    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


def cp(
    name: options.RecipeName,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, or a folder to put it into.")],
) -> None:
    """Copy a recipe to edit it; nothing is overwritten."""
    from ..recipe import find_recipe
    from ..storage import explained, write_text

    source = find_recipe(name)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise RunError(f"'{target}' exists already.", hint="Choose another name; nothing is overwritten.")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, source.read_text(encoding="utf-8"))
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
            typer.echo(str(error), err=True)
        else:
            typer.echo(f"{name}: good, {len(plan.steps)} steps")
    if failed:
        raise typer.Exit(2)


def schema(context: typer.Context) -> None:
    """Print the JSON schema of a recipe. For editors that check YAML while you type."""
    from ..recipe import json_schema

    display.print_json(json_schema(context.obj.registry))


def _first_comment(path: Path) -> str:
    """First line of a recipe's header comment."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""
