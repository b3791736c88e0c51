"""A data set of the Hugging Face hub, or of its local cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import rqat

from . import HubOptions
from .rows import make_rows, not_empty, records_of, shuffled


class Hub(rqat.Source):
    """Rows of a data set by its hub name."""

    options: HubOptions

    def rows(self, split: rqat.Split, seed: int) -> Iterator[rqat.Row]:
        """See `rqat.Source`."""
        options = self.options
        if split not in options.splits:
            raise rqat.DataError(
                f"'{options.name}' has no split '{split}' here.",
                hint=f"Known: {', '.join(options.splits)}. Add it: splits: {{{split}: <its name on the hub>}}",
            )
        names = list(options.splits.values())
        if len(set(names)) < len(names):
            raise rqat.DataError(
                f"'{options.name}': two splits name the same data: {', '.join(names)}.",
                hint='Slice it, e.g. splits: {train: "train[500:]", validation: "train[:500]"}',
            )
        examples = load_split(options.name, options.config, options.revision, options.splits[split])
        rows = [
            row
            for index, example in records_of(examples, options.name)
            for row in make_rows(example, options, lambda index=index: f"{options.name}[{index}]")  # type: ignore[misc]
        ]
        return shuffled(not_empty(rows, f"'{options.name}'"), seed, shuffle=options.shuffle)


def load_split(name: str, config: str | None, revision: str | None, split: str, *, hint: str = "") -> Any:
    """One split of a data set.

    Raises:
        DataError: it is not on the hub, or not in the cache while nothing may be fetched.
    """
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise rqat.DataError(
            f"The data set '{name}' (split '{split}') cannot be loaded: {reason}",
            hint=hint or "Check its name, config and split; offline, it has to be in the cache already.",
        ) from error
