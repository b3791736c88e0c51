"""`rqat tasks`: what a model can be evaluated on."""

from __future__ import annotations

from typing import Any

import typer

from . import display, options


def tasks(context: typer.Context, as_json: options.Json = False) -> None:
    """List the tasks of `rqat eval`: what they are, who brings them, and how a model is asked by default."""
    cards = context.obj.registry.cards("task")
    if as_json:
        display.print_json([{"name": card.name, **_about(card)} for card in cards])
        return
    rows = []
    for card in cards:
        about = _about(card)
        rows.append((card.name, card.summary, _sampling(about["options"]), card.paper or "", card.module))
    display.table(("task", "what", "sampling", "paper", "plugin"), rows)
    display.note("Beside these every task, group and tag of lm-eval by its name: rqat eval ifeval MODEL.")


def _about(card: Any) -> dict[str, Any]:
    fields = card.options.model_fields
    return {
        "summary": card.summary,
        "plugin": card.module,
        "paper": card.paper,
        "options": {
            name: field.get_default(call_default_factory=True)
            for name, field in fields.items()
            if not field.is_required()
        },
    }


def _sampling(found: dict[str, Any]) -> str:
    if "rows" in found or "max_new_tokens" not in found:
        return ""
    if not found["temperature"]:
        return f"greedy, up to {found['max_new_tokens']:,} tokens"
    times = f"{len(found['seeds'])} times, " if len(found["seeds"]) > 1 else ""
    return f"{times}temperature {found['temperature']}, up to {found['max_new_tokens']:,} tokens"
