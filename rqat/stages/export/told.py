"""What a run adds to the model card when it ends: scores and how they came about, licence, recipe, versions.

The front matter is that of the hub (`base_model`, `license`, `quantized_by`, `model-index`), written by its own
classes. No local path, address or token is named: of a file its name is kept, and no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from ...figures import hundredths
from ...stage import BASE

CARD = "README.md"

RESULTS, MADE = "Results", "How it was made"

_LICENCE = ("license", "license_name", "license_link")


def told(
    text: str, *, variant: str, summary: Mapping[str, Any], plan: Mapping[str, Any], licence: Mapping[str, str]
) -> str:
    """A model card with what its run tells; what an earlier end of the run has told is replaced.

    Args:
        text: the card as the export wrote it.
        variant: of the model that was exported.
        summary: contents of summary.json.
        plan: contents of plan.json.
        licence: `license` and what goes with it, of the model before quantization; empty where none is known.
    """
    card = _read(text)
    for key, value in licence.items():
        setattr(card.data, key, value)
    card.data["quantized_by"] = card.data.get("quantized_by") or "rqat"
    found = {task: models[variant] for task, models in summary["tasks"].items() if variant in models}
    _score(card, found, [*_results(variant, summary, found)])
    _put(card, MADE, [*_made(plan, licence)])
    return _written(card)


def scored(text: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A model card with the results of evaluations in place of those it had.

    Args:
        figures: contents of results.json, by task.
    """
    card = _read(text)
    summary = {"tasks": {task: {"": found} for task, found in figures.items()}, "paired": ()}
    _score(card, figures, [*_results("", summary, figures)])
    return _written(card)


def signed(text: str, owner: str) -> str:
    """A model card with `owner` as the one who quantized the model."""
    card = _read(text)
    card.data["quantized_by"] = owner
    return _written(card)


def has_scores(text: str) -> bool:
    """Whether a model card gives any."""
    return bool(getattr(_read(text).data, "eval_results", None))


def _read(text: str) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard(text, ignore_metadata_errors=True)


def _written(card: Any) -> str:
    return f"---\n{card.data.to_yaml()}\n---\n\n{card.text.strip()}\n"


def _score(card: Any, found: Mapping[str, Mapping[str, Any]], lines: list[str]) -> None:
    """Scores for the hub and for people."""
    shares = {task: figures for task, figures in found.items() if figures["accuracy"] <= 1}  # and no perplexities
    title = next((line[2:] for line in card.text.splitlines() if line.startswith("# ")), "model")
    card.data.model_name = title if shares else None
    card.data.eval_results = [_entry(task, figures) for task, figures in shares.items()] or None
    _put(card, RESULTS, lines if found else [], first=True)


def _put(card: Any, title: str, lines: list[str], *, first: bool = False) -> None:
    """A section in place of the one of its title, before the others or behind them."""
    head, *sections = re.split(r"^(?=## )", card.text.strip() + "\n", flags=re.MULTILINE)
    kept = [section.strip() for section in sections if not section.startswith(f"## {title}\n")]
    new = ["\n".join([f"## {title}\n", *lines]).strip()] if lines else []
    card.text = "\n\n".join([head.strip(), *(new + kept if first else kept + new)]) + "\n"


def _entry(task: str, figures: Mapping[str, Any]) -> Any:
    """A score as the hub lists it."""
    from huggingface_hub import EvalResult

    interval = f"95 % interval {100 * figures['low']:.1f} to {100 * figures['high']:.1f}"
    return EvalResult(
        task_type="text-generation",
        dataset_type=re.sub(r"[^\w.-]+", "-", task),
        dataset_name=_plain(task),
        metric_type="accuracy",
        metric_value=round(100 * figures["accuracy"], 2),
        metric_name=f"accuracy in %, {interval}, {figures['n']} problems",
    )


def _results(variant: str, summary: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Every task, beside the model before quantization where that was asked, too."""
    yield "| task | problems | before quantization, % | this model, % | difference, points |"
    yield "|---|---:|---:|---:|---|"
    pairs = {(pair["task"], pair["variant"], pair["against"]): pair for pair in summary["paired"]}
    for task, figures in found.items():
        before = summary["tasks"][task].get(BASE)
        pair = pairs.get((task, variant, BASE))
        change = ""
        if pair is not None:
            low, high = (f"{100 * pair[end]:+.1f}" for end in ("low", "high"))
            change = f"{100 * pair['difference']:+.1f} ({low} to {high}): {pair['says']}"
        yield f"| {_plain(task)} | {figures['n']} | {_share(before)} | {_share(figures)} | {change} |"
    yield "\nIn brackets 95 % intervals: of an accuracy Wilson's, for several seeds a bootstrap over problems; of a"
    yield "difference a bootstrap over problems. Whether a difference is shown says McNemar's exact test at 5 %,"
    yield "problem by problem.\n"
    for task, figures in found.items():
        yield f"`{_plain(task)}`: {', '.join(_sampled(figures))}.\n"


def _share(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return ""
    accuracy, low, high = (hundredths(figures[key]) for key in ("accuracy", "low", "high"))
    return f"{accuracy} ({low} to {high})"


def _sampled(figures: Mapping[str, Any]) -> Iterator[str]:
    """How answers were written."""
    generation = figures.get("generation") or {}
    temperature = generation.get("temperature")
    if temperature is not None:
        yield f"temperature {temperature:g}, top-p {generation.get('top_p', 1.0):g}" if temperature else "greedy"
    if generation.get("max_new_tokens"):
        yield f"at most {generation['max_new_tokens']:,} new tokens"
    seeds = figures.get("seeds") or ()
    yield f"{len(seeds)} seeds" if len(seeds) > 1 else "one answer a problem"
    if figures.get("mean_tokens") is not None:
        yield f"{figures['mean_tokens']:.0f} tokens on average"
    if figures.get("truncated") is not None:
        yield f"{100 * figures['truncated']:.1f} % cut off"
    if figures.get("backend"):
        yield f"written by {_plain(figures['backend'])}"


def _made(plan: Mapping[str, Any], licence: Mapping[str, str]) -> Iterator[str]:
    """Licence, command, recipe and versions."""
    import yaml

    named = " ".join(_plain(licence[key]) for key in _LICENCE[:2] if key in licence)
    yield (
        f"Licence: {named}, that of the model before quantization."
        if named
        else ("The licence is that of the model before quantization.")
    )
    yield "\n```shell\nrqat qat --recipe recipe.yaml\n```\n\n`recipe.yaml`, every default filled in:\n"
    recipe = yaml.safe_dump(shareable(plan["recipe"]), sort_keys=False, allow_unicode=True)
    yield f"```yaml\n{recipe.replace('```', '')}```\n"
    packages, machine = plan["packages"], plan["machine"]
    names = [f"{name} {packages[name]}" for name in ("torch", "transformers", "trl", "lm_eval") if name in packages]
    where = machine.get("gpu") or machine.get("processor") or ""
    yield _plain(f"rqat {plan['rqat']}, {', '.join(names)}{f', on {where}' if where else ''}.")


def shareable(value: Any) -> Any:
    """A recipe without local paths and addresses: of a file or a folder its name is kept."""
    if isinstance(value, Mapping):
        return {_harmless(str(key)): shareable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(inner) for inner in value]
    return _harmless(value) if isinstance(value, str) else value


def _harmless(text: str) -> str:
    if "://" in text:
        return "(left out)"
    local = text.startswith(("/", "~", "./", "../")) or "\\" in text or ("/" in text and Path(text).exists())
    # As the card's title: what a stranger has called a folder may look like front matter.
    return re.sub(r"[^\w./+ -]", "_", PurePath(text.replace("\\", "/")).name) if local else _plain(text)


def _plain(text: Any) -> str:
    """Text that is no markup, whatever a stranger has called a thing."""
    return re.sub(r"[<>\[\]`|\n\r]+", "_", str(text))


def licence_of(folder: Path | None) -> dict[str, str]:
    """What the card of the model before quantization says of its licence; empty where there is none."""
    path = folder / CARD if folder is not None else None
    if path is None or not path.is_file():
        return {}
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError):
        return {}
    found = {key: _plain(data[key]) for key in _LICENCE if isinstance(data.get(key), str)}
    # A link leads to a page, or to a file beside the card, and runs nothing.
    if re.match(r"https?://|[\w.-]+$", found.get("license_link", "")) is None:
        found.pop("license_link", None)
    return found
