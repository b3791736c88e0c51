"""An objective: cross entropy, and a penalty on large logits."""

import rqat


class Options(rqat.Options):
    """Options of `my-sft`.

    Attributes:
        penalty: weight of the squared log of the softmax's denominator.
    """

    penalty: float = 1e-4


class MySft(rqat.Objective):
    options: Options

    def build_trainer(self, training):
        from torch.nn.functional import cross_entropy
        from trl import SFTConfig, SFTTrainer

        penalty = self.options.penalty

        class Trainer(SFTTrainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                labels = inputs.pop("labels")
                logits = model(**inputs).logits[:, :-1].float()[labels[:, 1:] != rqat.IGNORED]
                wanted = labels[:, 1:][labels[:, 1:] != rqat.IGNORED]
                loss = cross_entropy(logits, wanted, reduction="sum")
                loss = loss + penalty * logits.logsumexp(-1).square().sum()
                # The tokens of the whole batch, so that it does not matter how the batch is split.
                loss = loss / (len(wanted) if num_items_in_batch is None else num_items_in_batch)
                return (loss, {}) if return_outputs else loss

        trainer = Trainer(
            model=training.model,
            args=SFTConfig(**training.arguments, max_length=None),  # rows are never too long: nothing may be cut
            train_dataset=training.rows,
            processing_class=training.tokenizer,
            optimizers=(training.optimizer, training.scheduler),
            callbacks=training.callbacks,
        )
        trainer.model_accepts_loss_kwargs = True
        return trainer


@rqat.hookimpl
def register_objectives(register: rqat.RegisterObjective) -> None:
    register("my-sft", options=Options, load=":MySft", summary="cross entropy with a penalty on large logits")
