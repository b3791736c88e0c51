"""Completions for reinforcement learning, by the generation room, on the very weights that are being trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ..generation.backend import writer_for
from ..generation.complete import Generator
from ..generation.engine import Engine
from ..generation.prompts import Prompt
from ..generation.sampling import Sampling, seed_of
from ..generation.transformers_writer import TransformersWriter
from .shards import is_split, whole

if TYPE_CHECKING:
    import transformers

    from ..generation.writer import Writer

BACKENDS = ("auto", "rqat", "transformers")

Backend = Literal["auto", "rqat", "transformers"]
"""rqat: the engine; auto: the engine on CUDA where it knows the model, transformers elsewhere."""

CACHE_SHARE = 0.4
"""Of the memory that is free at first, how much the engine's cache may take; it is kept while the model is trained."""


class Rollouts:
    """Writes with a model while it is trained: `rqat.Rollouts`.

    The writer shares the model's weights. The engine lays some of them side by side, and the model's own become views
    of those; so an optimizer that writes in place, as rqat's does, changes both, and nothing is copied after a step.
    Build it before anything keeps addresses of the weights.

    A model that is split over processes is gathered for as long as it writes, by transformers.

    What is drawn depends on the seed, the step and the process alone, so that a resumed run draws the same again.

    Args:
        limit: tokens a completion may have.
        seed, rank: of the run, and of this process.

    Raises:
        ModelError: the engine was asked for, and does not know the model.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        backend: Backend = "auto",
        *,
        limit: int,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.writer = _writer(model, backend)
        self.limit, self.seed, self.rank = limit, seed, rank

    def __call__(
        self, prompts: Sequence[Sequence[int]], *, step: int, temperature: float, top_p: float
    ) -> tuple[list[list[int]], list[list[float]]]:
        """See `rqat.Rollouts`.

        Raises:
            ModelError: out of memory.
        """
        seed = seed_of("rollouts", self.seed, step, self.rank)
        generator = Generator(self.model, self.tokenizer, Sampling(self.limit, temperature, top_p), self.writer)
        asked = [Prompt("", tuple(prompt)) for prompt in prompts]
        training = self.model.training
        # In training mode a model that recomputes activations uses no cache.
        self.model.eval()
        try:
            with whole(self.model):
                found = generator.complete(asked, self.limit, seed, logprobs=True)
        finally:
            self.model.train(training)
        return [list(one.tokens) for one in found], [list(one.logprobs or ()) for one in found]


def _writer(model: transformers.PreTrainedModel, backend: Backend) -> Writer:
    if backend == "transformers" or is_split(model):
        return TransformersWriter(model)
    writer = Engine(model) if backend == "rqat" else writer_for(model)
    if isinstance(writer, Engine):
        writer.cache_share = CACHE_SHARE
    return writer
