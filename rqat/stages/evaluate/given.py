"""An evaluation without a recipe: what `rqat.evaluate` is told of a task, checked, and run on a model in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ...contracts import Comparison, Task, TaskOptions
from ...errors import RecipeError, RqatError
from ...evals.compare import rows_of, run_comparison
from ...evals.harness import Evaluation, run_task
from ...generation.backend import writer_for
from ...model.vocabulary import ORIGINAL, check_vocabularies
from ...problems import Place, problems_of
from ...registry import Registry
from .. import keys_of
from . import LM_EVAL, EvaluateKeys

if TYPE_CHECKING:
    import transformers

    Loaded = tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]


class Asked:
    """A task that was named, with its options.

    Args:
        settings: as a recipe's `evaluate` has them.

    Raises:
        RecipeError: an option is wrong. UnknownName: there is no such task.
    """

    def __init__(self, registry: Registry, settings: dict[str, Any]) -> None:
        keys = keys_of("evaluate", settings)
        assert isinstance(keys, EvaluateKeys)
        self.keys, self._known = keys, [card.name for card in registry.cards("task")]
        self.task: Task | None = None
        if keys.task.startswith(LM_EVAL):
            try:
                self._options = TaskOptions.model_validate(keys.options)
            except ValidationError as error:
                raise RecipeError(problems_of(error, TaskOptions, Place({(): "evaluate"}))) from None
        else:
            card = registry.card("task", keys.task)
            self.task = registry.make(card, registry.options(card, keys.options, "evaluate"))

    def of(self, loaded: Loaded, original: Any, opened: Callable[[Any, Any, str], Loaded]) -> Evaluation:
        """Runs it on a model, which is as it was afterwards.

        Args:
            loaded: the model and its tokenizer.
            original: what a task that compares models compares with, loaded or by its name; None: nobody knows.
            opened: opens it, given that, a tokenizer and a device.

        Raises:
            DataError: its problems or rows are missing.
            RqatError: there is no original, or it is of another vocabulary.
        """
        model, tokenizer = loaded
        keys, training = self.keys, model.training
        try:
            model.eval()
            if self.task is None:
                from ...evals.lm_eval_tasks import run_lm_eval_task

                settings: dict[str, Any] = {"limit": keys.limit, "batch": keys.batch, "known": self._known}
                name = keys.task.removeprefix(LM_EVAL)
                return run_lm_eval_task(name, model, tokenizer, self._options, **settings)
            if isinstance(self.task, Comparison):
                if original is None:
                    raise RqatError(
                        f"'{keys.task}' compares a model with its original, and nobody knows which that is.",
                        hint="Pass original=: the model before quantization, loaded or by its path or hub name.",
                    )
                before = opened(original, tokenizer, str(model.device))
                return self._compared(self.task, model, tokenizer, before)
            settings = {"limit": keys.limit, "batch": keys.batch, "writer": writer_for(model)}
            return run_task(self.task, keys.task, model, tokenizer, **settings)
        finally:
            model.train(training)

    def _compared(self, task: Comparison, model: Any, tokenizer: Any, before: Loaded) -> Evaluation:
        original, words = before
        rows = rows_of(task, self.keys.task, self.keys.limit)
        check_vocabularies(words.get_vocab(), tokenizer.get_vocab(), ORIGINAL)
        data = ", ".join(part.source for part in task.options.rows)
        return run_comparison(task, self.keys.task, data, model, original, tokenizer, rows, lambda done, note: None)
