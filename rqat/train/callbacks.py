"""What hangs on a trainer: it keeps what it was given, prints nothing, does things once; trackers may look on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import Trainer, TrainerCallback

from ..contracts import Training
from ..errors import PluginError

if TYPE_CHECKING:
    import transformers

    from ..cards import Card

log = logging.getLogger("rqat")


def expect_given(trainer: transformers.Trainer, training: Training, card: Card) -> None:
    """A trainer that forgets what it was given would train to the end, and nothing of it could be used.

    Raises:
        PluginError: it is no trainer, trains another model, takes other batches or more steps, or lacks the optimizer,
            the schedule or a callback.
    """
    if not isinstance(trainer, Trainer):
        raise PluginError(f"{card}: build_trainer returned {trainer!r}.", hint="Return a transformers.Trainer.")
    theirs = {id(one) for one in trainer.model.parameters()} if trainer.model is not None else set()
    if any(id(one) not in theirs for one in training.model.parameters()):
        raise PluginError(
            f"{card}: its trainer trains another model than the one it was given, whose weights are kept on the grid.",
            hint="Pass model=training.model to the trainer, and no copy of it.",
        )
    optimizers = (trainer.optimizer, trainer.lr_scheduler)
    if any(one is not given for one, given in zip(optimizers, (training.optimizer, training.scheduler), strict=True)):
        raise PluginError(
            f"{card}: its trainer lacks the optimizer or the schedule it was given, so weights would leave the grid.",
            hint="Pass optimizers=(training.optimizer, training.scheduler) to the trainer.",
        )
    if (other := _otherwise(trainer.args, training.arguments)) is not None:
        raise PluginError(
            f"{card}: its trainer takes {other} of the recipe.",
            hint="Give its config **training.arguments, and change none of them.",
        )
    if any(one not in trainer.callback_handler.callbacks for one in training.callbacks):
        raise PluginError(
            f"{card}: its trainer does not have the callbacks it was given, which log and save.",
            hint="Pass callbacks=training.callbacks to the trainer.",
        )


def _otherwise(theirs: transformers.TrainingArguments, given: Mapping[str, Any]) -> str | None:
    """What a trainer takes other than it was given, of what the recipe says; None where there is nothing.

    It may split its share of a batch in another way, and may end early, which is told when it has.
    """
    rows = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"]
    own = theirs.per_device_train_batch_size * theirs.gradient_accumulation_steps
    if own != rows:
        return f"{own} rows a step, not the {rows}"
    if not 0 < theirs.max_steps <= given["max_steps"]:
        steps = f"{theirs.max_steps} steps" if theirs.max_steps > 0 else "whole epochs"
        return f"{steps}, not the {given['max_steps']} steps"
    return None


def without_printing(trainer: transformers.Trainer) -> None:
    """The Trainer's own output to the terminal; ours is the progress bar."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)


@contextmanager
def done_once(trainer: transformers.Trainer) -> Iterator[None]:
    """Around training: what transformers' Trainer does anew for every micro-batch, and a GPU waits for.

    It goes through all modules to put them into training mode, and through all parameters to count operations.
    """
    model: Any = trainer.model
    plain = model.train

    def train(mode: bool = True) -> Any:
        return model if model.training is mode else plain(mode)

    plain()
    model.train = train
    counted = {}
    if hasattr(model, "num_parameters"):  # else transformers counts nothing either
        count = model.num_parameters(exclude_embeddings=True)
        counted["floating_point_ops"] = lambda inputs: (
            6 * inputs[model.main_input_name].numel() * count if model.main_input_name in inputs else 0
        )
    vars(trainer).update(counted)
    try:
        yield
    finally:
        del model.train
        for name in counted:
            delattr(trainer, name)


def reporters(names: Sequence[str], folder: Path, step: str) -> list[TrainerCallback]:
    """The callbacks of transformers that hand figures to trackers.

    Args:
        names: "tensorboard", "trackio", "wandb".
        folder: of the run; TensorBoard's files go into `logs/<step>` there.
    """
    return [Reporter(name, folder / "logs" / step) for name in names]


class Reporter(TrainerCallback):
    """Hands the figures of a training to one tracker, by transformers' own callback.

    When that fails, offline or for want of a login, it is told once and left out: no training ends for it.
    """

    EVENTS: ClassVar[tuple[str, ...]] = ("on_train_begin", "on_log", "on_train_end")

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._inner: Any = None
        self._failed = False

    def _hand_on(self, event: str, args: Any, state: Any, control: Any, given: dict[str, Any]) -> None:
        if self._failed:
            return
        try:
            if self._inner is None:
                self._inner = self._made()
            getattr(self._inner, event)(args, state, control, **given)
        except Exception as error:
            self._failed = True
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning("%s: nothing is logged there: %s", self.name, reason)

    def _made(self) -> Any:
        from transformers.integrations import get_reporting_integration_callbacks

        [kind] = get_reporting_integration_callbacks(self.name)
        made = kind()
        if self.name == "tensorboard":  # which would be within what a step resumes from, and go with it
            made.logging_dir = str(self.folder)
        return made

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begins, or begins anew where a training resumes."""
        self._hand_on("on_train_begin", args, state, control, given)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Figures of a step, as they stand in training.jsonl."""
        self._hand_on("on_log", args, state, control, given)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Ends."""
        self._hand_on("on_train_end", args, state, control, given)
