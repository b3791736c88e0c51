"""Lets a source write what it will be read from, with the model before quantization at hand.

What a source writes lies in the step's folder, as it likes; interrupted, it is called again and finds it there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...contracts import Completion, LoadedModel, Row, Source
from ...errors import PluginError
from ...generation.backend import writer_for
from ...generation.complete import complete_rows
from ...job import Job
from ...model.load import load_model
from ...stage import Finding, Look, Step
from . import ROWS_AT_ONCE, ProduceSettings

if TYPE_CHECKING:
    import transformers


def run(job: Job, step: Step) -> dict[str, Any]:
    """Loads the plan's model and calls `Source.produce`.

    Returns:
        what the source tells, behind its name.

    Raises:
        PluginError: it wrote nothing, or tells something else than figures by name.
        RqatError: see `load_model`, and whatever the source reports.
    """
    keys, card = step.settings, step.parts["source"].card
    assert isinstance(keys, ProduceSettings)
    source: Source = job.make(step, "source")
    model, tokenizer = load_model(job.plan.model, device=job.device, offline=job.offline)
    folder = job.workdir(step)
    told = source.produce(folder, loaded(job, model, tokenizer, f"produce {card.name}"), keys.split, keys.seed)
    if not isinstance(told, Mapping):
        raise PluginError(f"{card}: produce returned {told!r}.", hint="Return a mapping of figures; it may be empty.")
    if not any(path.is_file() and not path.name.startswith(".") for path in folder.rglob("*")):
        raise PluginError(f"{card}: produce wrote nothing into its folder.", hint="Report this to its author.")
    return {"source": card.name, **told}


def loaded(
    job: Job, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, label: str
) -> LoadedModel:
    """What a source is given; its completions show a progress bar."""
    writer = writer_for(model)

    def complete(
        rows: Sequence[Row],
        samples: int = 1,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch: int = ROWS_AT_ONCE,
    ) -> list[list[Completion]]:
        with job.progress.task(label, len(rows) * samples) as bar:
            return complete_rows(
                model,
                tokenizer,
                rows,
                samples,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                batch=batch,
                writer=writer,
                report=bar.update,
            )

    return LoadedModel(model, tokenizer, complete)


def read_ahead(step: Step, look: Look) -> Iterator[Finding]:
    """What is wrong with the sources that a source is made of: whether they can be read, and have rows.

    Raises:
        RqatError: they cannot be read.
    """
    keys = step.settings
    assert isinstance(keys, ProduceSettings)
    assert look.parts is not None
    for part, _ in step.parts["source"].parts:
        source: Source = look.parts.make(part)
        if next(iter(source.rows(keys.split, keys.seed)), None) is None:
            text = f"'{part.card.name}' has no rows in its {keys.split} split."
            yield step.finding("error", "", text, "Check its options.")
