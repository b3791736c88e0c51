"""GRPO on verified answers: Reasoning-QAT's stage after distillation and the cold-start gate (arXiv 2601.14888)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

import rqat
from rqat_kernels.divergences import Name

VLLM = "vllm>=0.22,<=0.31"
"""Releases of vLLM that TRL 1.16 admits (`trl.import_utils.is_vllm_available`)."""


STOPS = rqat.Neutral("when training is given up; with another value it goes on from its last checkpoint")


class Rollouts(BaseModel):
    """What writes completions.

    Attributes:
        engine: rqat, transformers, vllm, or auto.
        url: of the vLLM server.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["auto", "rqat", "transformers", "vllm"] = "auto"
    url: Annotated[str | None, rqat.Neutral("where the server is")] = None

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        return {"engine": value} if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str | None) -> str | None:
        """One that may stand in a manifest."""
        if url is not None and not re.match("https?://[^@/]", url):
            raise ValueError(f"{url!r} is no address; write one like http://localhost:8000.")
        if url is not None and "@" in url:
            raise ValueError("holds a name or a password, which would stand in the run's files; leave it out.")
        return url

    @model_validator(mode="after")
    def _whole(self) -> Rollouts:
        if self.engine == "vllm" and self.url is None:
            raise ValueError("`engine: vllm` needs a server; write {engine: vllm, url: http://localhost:8000}.")
        if self.engine != "vllm" and self.url is not None:
            raise ValueError("`url` goes with `engine: vllm`, and with no other engine.")
        return self


class Options(rqat.Options):
    """How completions are sampled, how the policy moves, and when to stop.

    Completions earn what `train.rewards` says, by default 1 when the task's grader calls them correct. `train.batch`
    counts completions: each step samples `batch / generations` prompts. A teacher, by default the model before
    quantization, is loaded where `kd_weight` or `beta` asks for one.

    Attributes:
        generations: completions per prompt; an advantage compares the completions of one prompt.
        temperature: of sampling.
        top_p: nucleus sampling bound.
        max_completion_tokens: longest completion; None is what `max_tokens` leaves after the longest prompt.
        loss_type: how token losses are averaged: dapo (arXiv 2503.14476) over all tokens of the batch; grpo
            (arXiv 2402.03300) over each completion first; dr_grpo (arXiv 2503.20783) by a constant; bnpo.
        scale_rewards: divide advantages by the standard deviation of the group, of the batch, or not at all.
        epsilon: clip range of the probability ratio.
        epsilon_high: upper clip range; None is `epsilon` (0.28 in arXiv 2503.14476).
        mask_truncated: leave completions that did not end out of the loss.
        rollouts: what writes the completions, `{engine: ..., url: ...}` or the engine's name alone: rqat's own
            (`rqat`), the model's `generate` (`transformers`), or a vLLM server at `url` (`vllm`); `auto` is rqat's on
            CUDA where it knows the model, transformers elsewhere.
        correction: how the difference between sampler and trainer is made up for: the ratio of their probabilities, of
            each token or of the whole completion, multiplies the loss; above 3 it is cut to 3 (truncate) or counts
            nothing (mask). token_truncate is truncated importance sampling (github.com/huggingface/trl/pull/3867).
        kd_weight: adds so much of the divergence from the teacher, on every token of the completions, to the loss:
            on-policy distillation (arXiv 2306.13649) beside the rewards.
        divergence: which one; see `kd`.
        kd_beta: the teacher's share in the mixture that some compare with; see `kd`.
        beta: weight of the KL to the teacher that GRPO itself knows, estimated from the sampled tokens alone
            (arXiv 2402.03300, eq. 4).
        gap_bound: warn when, at the 95 % quantile of a step's tokens, the log-probabilities of sampler and trainer are
            further apart than this, in nats.
        patience: steps over which the three bounds below are judged.
        truncation_bound: stop when a larger share of completions was cut off, on average over `patience` steps.
        repetition_bound: stop when a larger share of completions ended in a loop.
    """

    generations: int = Field(default=8, ge=2)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    epsilon: float = Field(default=0.2, gt=0)
    epsilon_high: float | None = Field(default=None, gt=0)
    mask_truncated: bool = False
    rollouts: Rollouts = Rollouts()
    correction: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "token_truncate"
    kd_weight: float = Field(default=0.0, ge=0)
    divergence: Name = "reverse"
    kd_beta: float = Field(default=0.5, gt=0, lt=1)
    beta: float = Field(default=0.0, ge=0)
    gap_bound: Annotated[float, rqat.Neutral("what is told")] = Field(default=0.2, gt=0)
    patience: Annotated[int, STOPS] = Field(default=20, ge=1)
    truncation_bound: Annotated[float, STOPS] = Field(default=0.9, ge=0, le=1)
    repetition_bound: Annotated[float, STOPS] = Field(default=0.5, ge=0, le=1)

    def check(self, context: rqat.Context) -> Iterator[rqat.Problem]:
        """Batches that groups do not fill, completions that do not fit, and a server that cannot be used."""
        if self.rollouts.engine == "vllm":
            if find_spec("vllm") is None:
                yield rqat.Problem(
                    "vllm is not installed, whose server is to write the completions.",
                    f"Install it here, too: pip install '{VLLM}'. Or use another engine.",
                    "rollouts",
                )
            if context.device != "cuda":
                yield rqat.Problem(
                    f"a vLLM server gets its weights over NCCL, from a GPU; this trains on {context.device}.",
                    "Train on CUDA, or use another engine.",
                    "rollouts",
                )
        batch = context.settings["batch"]
        if batch % self.generations:
            whole = batch // self.generations * self.generations
            fits = " or ".join(str(count) for count in (whole, whole + self.generations) if count)
            yield rqat.Problem(
                f"a batch of {batch} completions is not a multiple of generations={self.generations}.",
                f"A step holds every completion of its prompts: use a batch of {fits}, or other generations.",
                "batch",
            )
        limit = context.settings["max_tokens"]
        if self.max_completion_tokens is not None and self.max_completion_tokens >= limit:
            yield rqat.Problem(
                f"max_completion_tokens is {self.max_completion_tokens}, but prompt and completion together have "
                f"max_tokens={limit}.",
                "Raise max_tokens, or leave max_completion_tokens out: completions then get what prompts leave.",
                "max_completion_tokens",
            )


@rqat.hookimpl
def register_objectives(register: rqat.RegisterObjective) -> None:
    """The card of `grpo`."""
    register(
        "grpo",
        options=Options,
        load=".objective:Grpo",
        summary="reinforcement learning from verified answers",
        paper="2402.03300",
        teacher=("kd_weight", "beta"),
        writes=True,
        graded=True,
        logits="chunks",
    )
