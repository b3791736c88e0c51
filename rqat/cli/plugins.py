"""`rqat plugins`: what is installed, a new plugin from an existing one, and whether a plugin keeps its promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from . import display, options

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
    """List everything plugins offer, who owns it, and what is broken."""
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
        (card.kind, card.name, card.module, f"{card.owner} {card.version}", card.summary, card.paper) for card in cards
    ]
    display.table(("kind", "name", "plugin", "from", "what it does", "arXiv"), rows)
    for broken in registry.broken:
        typer.echo(f"broken: {broken}")
    for clash in clashes:
        typer.echo(f"offered twice, so not usable: {' and '.join(clash)}")
    for name in registry.disabled:
        typer.echo(f"left out by RQAT_DISABLE_PLUGINS: {name}")


def _schema(card: Any) -> dict[str, Any]:
    """Options of a part and their defaults."""
    return {name: repr(info.default) for name, info in card.options.model_fields.items() if not info.is_required()}


def new():
    "x"


def doctor():
    "x"
