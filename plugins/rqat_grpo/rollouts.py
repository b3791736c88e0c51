"""TRL's GRPO trainer, asking the model the very tokens that it meets when it is evaluated."""

from __future__ import annotations

from typing import Any

import trl

import rqat


class Trainer(trl.GRPOTrainer):
    """Takes the token ids of prompts from the column `prompt_ids` of the training rows.

    TRL's own tokenization ends a prompt with the end token where the tokenizer adds one, and knows no settings of the
    chat template that differ from row to row.
    """

    _asked: list[list[int]] | None = None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._asked = [list(row["prompt_ids"]) for row in inputs]
        found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._asked is not None:
            raise rqat.RqatError(
                f"grpo: trl {trl.__version__} tokenizes prompts in a way of its own.",
                hint="Install a release of trl that rqat names in its dependencies.",
            )
        return found

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        asked, self._asked = self._asked, None
        assert asked is not None
        assert len(asked) == len(prompts)
        return asked, None, {}
