"""`rqat plugins`: what is installed, a new plugin from an existing one, and whether a plugin keeps its promises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UnknownName
from . import display, options
from .values import pairs

if TYPE_CHECKING:
    from ..discovery import BrokenPlugin
    from ..registry import Card, Command, Registry
    from ..testing import Result

KindOf = Annotated[str | None, typer.Option(help="Only parts of this kind, where a name has several.")]


def app() -> typer.Typer:
    """The group of commands; `rqat plugins` alone is `rqat plugins ls`."""
    group = typer.Typer(help="List, show, start and check plugins.", invoke_without_command=True, rich_markup_mode=None)

    @group.callback()
    def default(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            ls(context)

    group.command("ls")(ls)
    group.command("show")(show)
    group.command("new")(new)
    group.command("doctor")(doctor)
    return group


def ls(
    context: typer.Context,
    as_json: options.Json = False,
) -> None:
    """List what plugins offer. With who owns it, and what is broken (with -v: where)."""
    registry: Registry = context.obj.registry
    if as_json:
        display.print_json(_listed(registry))
        return
    rows: list[tuple[str, ...]] = [
        (card.kind, card.name, f"{card.module} ({card.owner} {card.version})", card.summary, card.paper)
        for card in registry.all_cards()
    ]
    rows += [
        ("command", found.name, f"{found.module} ({found.owner})", found.summary, "") for found in registry.commands
    ]
    display.table(("kind", "name", "plugin", "what it does", "arXiv"), rows)
    for broken in registry.broken:
        _tell_broken("broken: ", broken, verbose=context.obj.verbose)
    for clash in registry.clashes:
        names = " or ".join(card.full_name for card in clash)
        typer.echo(f"offered twice: {' and '.join(map(str, clash))}; say whose: {names}")
    for card, own in registry.shadowed:
        typer.echo(f"{card}: the name is rqat's own ({own.module}); this one is {card.full_name}")
    for name in registry.disabled:
        typer.echo(f"left out by RQAT_DISABLE_PLUGINS: {name}")


def _listed(registry: Registry) -> dict[str, Any]:
    return {
        "parts": [_described(card) | {"options": _defaults(card)} for card in registry.all_cards()],
        "commands": [{"name": c.name, "module": c.module, "owner": c.owner} for c in registry.commands],
        "broken": [{"module": b.name, "owner": b.owner, "error": b.error} for b in registry.broken],
        "clashes": [[str(card) for card in cards] for cards in registry.clashes],
        "shadowed": [card.full_name for card, _ in registry.shadowed],
        "disabled": registry.disabled,
    }


def _described(card: Card) -> dict[str, Any]:
    fields = ("kind", "name", "full_name", "module", "owner", "version", "summary", "paper")
    return {name: getattr(card, name) for name in fields}


def _defaults(card: Card) -> dict[str, Any]:
    """Options of a part and their defaults."""
    return {name: repr(info.default) for name, info in card.options.model_fields.items() if not info.is_required()}


def _tell_broken(label: str, broken: BrokenPlugin, *, verbose: int) -> None:
    typer.echo(f"{label}{broken}")
    if verbose and broken.traceback:
        typer.echo(broken.traceback.rstrip())


def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a part, `plugin:part`, or of a plugin.")],
    kind: KindOf = None,
    as_json: options.Json = False,
) -> None:
    """Show what is known of a part. Its options, its class and file, whose it is."""
    from ..describe import field_rows

    registry: Registry = context.obj.registry
    shown = []
    for card in _chosen(registry, [name], kind):
        facts = {"class": f"{card.module}{card.load.replace(':', '.')}", "file": card.class_file} | card.facts()
        shown.append(_described(card) | facts | {"options": [vars(row) for row in field_rows(card.options)]})
    commands = [] if kind else _commands(registry, [name])
    if as_json:
        display.print_json(shown + [{"kind": "command", **vars(command)} for command in commands])
        return
    for part in shown:
        typer.echo(f"{part.pop('kind')} {part.pop('name')}")
        part["plugin"] = f"{part.pop('module')} ({part.pop('owner')} {part.pop('version')})"
        rows = [(row["name"], row["type"], row["default"] or "required", row["meaning"]) for row in part.pop("options")]
        for key, value in part.items():
            if value not in ("", None, (), False):
                text = ", ".join(map(str, value)) if isinstance(value, tuple) else value
                typer.echo(f"  {key.replace('_', ' '):<11}{'yes' if text is True else text}")
        if rows:
            display.table(("option", "type", "default", "meaning"), rows)
        else:
            typer.echo("  no options")
    for command in commands:
        typer.echo(
            f"command {command.name}\n  summary    {command.summary}\n  plugin     {command.module} ({command.owner})"
        )
    for broken in _broken(registry, [name]):
        _tell_broken("broken: ", broken, verbose=context.obj.verbose)


def _chosen(registry: Registry, names: Sequence[str], kind: str | None) -> list[Card]:
    """The parts that names mean: of a part, `plugin:part`, or of a plugin (its module, distribution or entry point)."""
    from ..discovery import module_called

    cards = [card for card in registry.all_cards() if kind in (None, card.kind)]
    found: list[Card] = []
    for name in names:
        plugin, _, bare = name.rpartition(":")
        meant = [card for card in cards if card.name == bare and (not plugin or card.belongs_to(plugin))]
        module = module_called(name)
        meant = meant or [card for card in cards if card.belongs_to(name) or card.belongs_to(module)]
        if not meant and not _broken(registry, [name]) and not _commands(registry, [name]):
            known = {card.name for card in cards} | {card.module for card in cards}
            known |= {command.name for command in registry.commands} | {broken.name for broken in registry.broken}
            raise UnknownName(name, f"{kind or 'part'} or plugin", known)
        found += [card for card in meant if card not in found]
    return found


def _broken(registry: Registry, names: Sequence[str]) -> list[BrokenPlugin]:
    """What is broken of the plugins called so."""
    from ..cards import spelled

    wanted = _spellings(names)
    return [b for b in registry.broken if wanted & {spelled(b.name), spelled(b.owner)}]


def _commands(registry: Registry, names: Sequence[str]) -> list[Command]:
    """The commands that names mean: of a command, or of the plugin that adds it."""
    from ..cards import spelled

    wanted = _spellings(names)
    return [c for c in registry.commands if c.name in names or wanted & {spelled(c.module), spelled(c.owner)}]


def _spellings(names: Sequence[str]) -> set[str]:
    """Names of plugins, and of the modules behind those that are entry points, all spelled alike."""
    from ..cards import spelled
    from ..discovery import module_called

    return {spelled(word) for name in names for word in (name, module_called(name))}


def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new distribution: rqat-<owner>-<name>.")],
    like: Annotated[str, typer.Option("--from", metavar="PLUGIN", help="What to start from, e.g. kd.")] = "rtn",
    kind: Annotated[str | None, typer.Option(help="What --from is, where a name has several, e.g. quantizer.")] = None,
    folder: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to put it.")] = Path(),
) -> None:
    """Start a plugin of your own. Copies an installed one out, with an entry point and a test."""
    from ..scaffold import new_plugin

    made = new_plugin(context.obj.registry, name, like, kind=kind, parent=folder)
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
    kind: KindOf = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option to test with, e.g. path=rows.jsonl.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Test the plugins that come with rqat as well.")] = False,
) -> None:
    """Check that plugins keep their promises. Runs the conformance suite of every part, and the plugin's own."""
    from ..testing.doctor import examine, examine_command

    registry: Registry = context.obj.registry
    broken = _broken(registry, names) if names else registry.broken
    if names:
        cards = _chosen(registry, names, kind)
        broken += [b for b in registry.broken if b not in broken and b.name in {card.module for card in cards}]
    else:
        cards = [c for c in registry.all_cards() if kind in (None, c.kind) and (every or c.owner != "rqat")]
    commands = [] if kind else _commands(registry, names) if names else registry.commands
    settings = pairs(changes or [], "--set")
    failed = len(broken)
    for found in broken:
        _tell_broken("FAILED  ", found, verbose=context.obj.verbose)
    for card in cards:
        typer.echo(str(card))
        for result in examine(registry, card, settings):
            failed += _tell(result)
    for command in commands:
        typer.echo(f"command '{command.name}' ({command.module}, {command.owner})")
        for result in examine_command(command):
            failed += _tell(result)
    if not cards and not broken and not commands:
        typer.echo("There are no third-party plugins; --all tests those that come with rqat.")
    if failed:
        raise typer.Exit(1)


def _tell(result: Result) -> bool:
    """Prints how one test ended; returns whether it failed."""
    verdict = "FAILED" if result.error else "skipped" if result.skipped else "good"
    typer.echo(f"  {verdict:<8}{': '.join(filter(None, (result.test, result.error, result.skipped)))}")
    return bool(result.error)
