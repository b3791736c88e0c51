"""`rqat plugins`: what is installed, a new plugin from an existing one, and whether a plugin keeps its promises."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UnknownName
from . import display, options
from .values import pairs

if TYPE_CHECKING:
    from ..registry import Registry


def app() -> typer.Typer:
    """The group of commands; `rqat plugins` alone is `rqat plugins ls`."""
    group = typer.Typer(help="List, start and check plugins.", invoke_without_command=True, rich_markup_mode=None)

    @group.callback()
    def default(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            ls(context)

    group.command("ls")(ls)
    group.command("new")(new)
    group.command("doctor")(doctor)
    return group


def ls(
    context: typer.Context,
    as_json: options.Json = False,
) -> None:
    """List what plugins offer. With who owns it, and what is broken."""
    from ..registry import KINDS

    registry: Registry = context.obj.registry
    cards = [card for kind in KINDS for card in registry.cards(kind)]
    clashes = [[str(card) for card in cards] for cards in registry.clashes]
    if as_json:
        fields = ("kind", "name", "module", "owner", "version", "summary", "paper")
        display.print_json(
            {
                "parts": [
                    {name: getattr(card, name) for name in fields} | {"options": _schema(card)} for card in cards
                ],
                "broken": [{"module": b.name, "owner": b.owner, "error": b.error} for b in registry.broken],
                "clashes": clashes,
                "disabled": registry.disabled,
            }
        )
        return
    rows = [
        (card.kind, card.name, f"{card.module} ({card.owner} {card.version})", card.summary, card.paper)
        for card in cards
    ]
    display.table(("kind", "name", "plugin", "what it does", "arXiv"), rows)
    for broken in registry.broken:
        typer.echo(f"broken: {broken}")
    for clash in clashes:
        typer.echo(f"offered twice, so not usable: {' and '.join(clash)}")
    for name in registry.disabled:
        typer.echo(f"left out by RQAT_DISABLE_PLUGINS: {name}")


def _schema(card: Any) -> dict[str, Any]:
    """Options of a part and their defaults."""
    return {name: repr(info.default) for name, info in card.options.model_fields.items() if not info.is_required()}


def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new distribution: rqat-<owner>-<name>.")],
    like: Annotated[str, typer.Option("--from", metavar="PLUGIN", help="What to start from, e.g. gptq.")] = "rtn",
    folder: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to put it.")] = Path(),
) -> None:
    """Start a plugin of your own. Copies an installed one out, with an entry point and a test."""
    from ..scaffold import new_plugin

    made = new_plugin(context.obj.registry, name, like, parent=folder)
    typer.echo(f"Wrote {made.folder}, a copy of {like}:")
    for old, own in made.names.items():
        typer.echo(f"  {old} is now called {own}")
    typer.echo("Next:")
    for command in made.commands:
        typer.echo(f"  {command}")


def doctor(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Parts or plugins; all third-party ones if left out."),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only parts of this kind, where a name has several.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option to test with, e.g. path=rows.jsonl.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Test the plugins that come with rqat as well.")] = False,
) -> None:
    """Check that plugins keep their promises. Runs the conformance suite of every part."""
    from ..registry import KINDS
    from ..testing import examine

    registry: Registry = context.obj.registry
    cards = [card for each in KINDS for card in registry.cards(each) if kind in (None, each)]
    if names:
        known = {card.name for card in cards} | {card.module for card in cards}
        for name in names:
            if name not in known:
                raise UnknownName(name, "part or plugin", known)
        cards = [card for card in cards if card.name in names or card.module in names]
    elif not every:
        cards = [card for card in cards if card.owner != "rqat"]
    options = pairs(changes or [], "--set")
    failed = len(registry.broken)
    for broken in registry.broken:
        typer.echo(f"FAILED  {broken}")
    for card in cards:
        typer.echo(str(card))
        for result in examine(registry, card, options):
            verdict = "FAILED" if result.error else "skipped" if result.skipped else "good"
            typer.echo(f"  {verdict:<8}{': '.join(filter(None, (result.test, result.error, result.skipped)))}")
            failed += bool(result.error)
    if not cards:
        typer.echo("There are no third-party plugins; --all tests those that come with rqat.")
    if failed:
        raise typer.Exit(1)
