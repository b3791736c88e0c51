"""Train: a quantized model for one objective, kept on its grid."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from ...batches import UnevenBatch, largest_that_fits, sequences_at_once, split_batch
from ...errors import nearest
from ...estimate import LATENT_BYTES, Learning, Needs, Sizes, engine_positions
from ...figures import duration_s, steps_or_duration
from ...keys import DataKeys, ModelKeys, Neutral, PluginKeys, Seed
from ...model.extras import about_teacher
from ...model.layers import ENDS
from ...optimizers import MOMENTS, OPTIMIZERS, RATES, SCHEDULES, doubtful, warm_steps
from ...problems import Place
from ...stage import PRODUCED, Finding, Look, Making, Planned, Section, Stage, Step, Use
from ..gate import Gate, GateKeys
from ..produce import Produce


class RewardKeys(PluginKeys):
    """One reward; what remains are its options. In a recipe a plain number is short for `{weight: ...}`.

    Attributes:
        weight: what its score counts in the sum of all rewards.
    """

    number_for: ClassVar[str] = "weight"
    kinds: ClassVar[tuple[str, ...]] = ("reward",)

    weight: float = Field(default=1.0)

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"weight": value}
        if not isinstance(value, dict | RewardKeys):
            raise ValueError(f"{value!r} is neither a weight nor a mapping.")
        return value


REWARDS = {"correct": RewardKeys()}
"""What an objective is trained on when its recipe names no rewards."""


class WatchKeys(PluginKeys):
    """A task that compares models, asked while training goes on; what remains are its options.

    Attributes:
        task: name of the task, such as `kl`.
        every: optimizer steps from one look to the next.
        limit: use the first `limit` rows only. None is all.
    """

    named_by: ClassVar[str] = "task"
    kinds: ClassVar[tuple[str, ...]] = ("task",)

    task: str
    every: int = Field(default=10, ge=1)
    limit: int | None = Field(default=32, ge=1)


class TrainKeys(PluginKeys):
    """One objective; what remains are its options.

    Attributes:
        objective: name of the objective.
        data: rows to train on.
        teacher: another model to distil from, with the same tokenizer; None is the model before quantization.
        task: whose grader judges completions, for objectives that are trained on rewards; where no reward counts, it
            only counts the right ones, and may be left out.
        rewards: what such an objective is trained on: rewards by name, each with its weight, or with `weight` and
            options of its own (`{correct: 1.0, length: {weight: -0.1}}`). None is `{correct: 1.0}`.
        steps: optimizer steps.
        batch: sequences per optimizer step (completions per step, where the objective is trained on rewards).
        micro_batch: sequences per forward pass; `batch` is a multiple of it, times the processes that train together.
            None is the whole batch, or a process's share of it; `auto` the largest that the estimate fits into the free
            memory, and the same again where the step resumes.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them: far less memory
            for about a third more time. None is yes on CUDA and no on the CPU.
        shard: split model, teacher and optimizer over the processes that train together (FSDP), in place of a copy in
            each. `auto` where a copy does not fit into the free memory, and the same again where the step resumes.
        max_tokens: longest prompt plus completion; longer rows are left out and counted.
        optimizer: name of a torch.optim class.
        lr: learning rate of the latent weights. None: codes stay, and the rest is trained in far less memory.
        lr_in: what it is counted in. `weights`: one number for all. `size`: a share of their root mean square, the same
            for models of large weights and of small. `codes`: steps of the grid, each group's own; 2e-3 was too high.
        latent_reach: how far from its code's value a latent weight starts at most, in steps of the grid (0.5 is the
            border). It starts where the train step before left it, else at the weight before quantization.
        scale_lr: of the scales, relative to the scale itself. None freezes the scales.
        zero_lr: of the zero points, in codes. None freezes the zero points.
        other_lr: of everything that is not quantized, embeddings and lm_head left out. None freezes it.
        train_embedding: train the embedding and the head, too, where they are quantized: as latent weights on their
            grid, like every layer. False keeps them as they are.
        schedule: a transformers schedule name.
        warmup: share of the steps with a rising learning rate; the first of five has a fifth of it, the fifth all.
        weight_decay: of the latent weights.
        max_grad_norm: gradient clipping, global norm.
        save_every: optimizer steps, or time (90s, 15m, 1h), between checkpoints, from which an interrupted run resumes;
            they are written while training goes on. The last step always leaves one.
        gate: the cold-start gate, for objectives that are trained on rewards.
        watch: a comparison with the model before quantization, on held-out rows, every few steps; its figures stand in
            training.jsonl and in the report.
        seed: order of the data and sampling.
    """

    named_by: ClassVar[str] = "objective"
    kinds: ClassVar[tuple[str, ...]] = ("objective",)

    objective: str
    data: DataKeys
    teacher: ModelKeys | None = None
    task: Annotated[str | None, Neutral("it stands among the parts")] = None
    rewards: Annotated[dict[str, RewardKeys] | None, Neutral("they stand among the parts")] = Field(
        default=None, min_length=1
    )
    steps: int = Field(ge=1)
    batch: int = Field(default=16, ge=1)
    micro_batch: Annotated[PositiveInt | Literal["auto"] | None, Neutral("how many fit into memory")] = None
    gradient_checkpointing: Annotated[bool | None, Neutral("what is kept in memory")] = None
    shard: Annotated[bool | Literal["auto"], Neutral("how memory is spread over processes")] = "auto"
    max_tokens: int = Field(default=2048, ge=2)
    optimizer: str = "AdamW"
    lr: float | None = Field(default=2e-5, gt=0)
    lr_in: Literal["weights", "codes", "size"] = "weights"
    latent_reach: float = Field(default=0.4, ge=0, le=0.5)
    scale_lr: float | None = Field(default=5e-4, gt=0)
    zero_lr: float | None = Field(default=None, gt=0)
    other_lr: float | None = Field(default=None, gt=0)
    train_embedding: bool = False
    schedule: str = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=True)  # .inf clips nothing
    save_every: Annotated[int | str, AfterValidator(steps_or_duration), Neutral("what an interruption costs")] = "10m"
    gate: Annotated[GateKeys, Neutral("they count in the gate's own step")] = GateKeys()
    watch: Annotated[WatchKeys | None, Neutral("what is looked at, beside the training")] = None
    seed: Seed = 0

    @property
    def at_once(self) -> int | None:
        """Sequences per forward pass where they are said; None leaves it to the batch, or to the free memory."""
        return self.micro_batch if isinstance(self.micro_batch, int) else None

    @property
    def save_steps(self) -> int | None:
        """Steps between checkpoints; None where the time decides."""
        return self.save_every if isinstance(self.save_every, int) else None

    @property
    def save_s(self) -> float:
        """Seconds between checkpoints, where the time decides."""
        return duration_s(self.save_every) or 0.0 if isinstance(self.save_every, str) else 0.0

    def recomputes(self, device: str) -> bool:
        """Whether activations are computed again in the backward pass on a device."""
        return device != "cpu" if self.gradient_checkpointing is None else self.gradient_checkpointing


class Train(Stage):
    """One objective after the other, each from the model before it."""

    order = 30
    sections = (Section("train", TrainKeys, "objectives, in order.", many=True),)
    makes_model = True
    of_scheme = True
    beside = frozenset({"watch"})

    def add(self, making: Making) -> None:
        """See `Stage`."""
        for index, keys in enumerate(making.recipe.train):
            self._add(making, keys, making.place.at("train", index))

    def _add(self, making: Making, keys: TrainKeys, place: Place) -> None:
        if making.last not in making.made:
            making.problem(f"{place}: there is no quantized model to train; name a quantizer under `quantize`.")
            return
        variant = making.variant(keys.objective)
        objective = making.use("objective", keys, place)
        source = making.use("source", keys.data, place.at("data"))
        parts = {"objective": objective, "source": source}
        if any(card.compares for card in making.known("task") if card.name == keys.task):
            making.problem(f"{place.at('task')}: '{keys.task}' compares models; it grades no completion.")
        else:
            parts["task"] = making.named("task", keys.task, place.at("task")) if keys.task is not None else None
        if keys.teacher is not None and objective is not None and not objective.teacher:
            learners = ", ".join(card.name for card in making.known("objective") if card.teacher is True)
            named = objective.card.teacher
            switch = f"set {' or '.join(named)}, " if isinstance(named, tuple) else ""
            wanted = f"{switch}leave it out, or use one that does: {learners}"
            making.problem(f"{place.at('teacher')}: '{keys.objective}' learns from no teacher; {wanted}.")
        inputs = {"start": making.made[making.last]}
        inputs |= Produce().add_before(making, keys.data, place.at("data"), source)
        if objective is not None:
            parts["objective"] = objective = replace(objective, parts=_rewards(making, keys, place, objective))
        if objective is not None and objective.rewarded:
            if keys.task is None:
                known = ", ".join(card.name for card in making.known("task") if not card.compares)
                wanted = f"add `task: ...`, known: {known}"
                making.problem(f"{place}: '{keys.objective}' is rewarded by a task's grader; {wanted}.")
            inputs["gate"] = Gate().add_before(making, keys, place, variant, parts, inputs)
        if keys.watch is not None:
            parts["watch"], watched = _watched(making, keys.watch, place.at("watch"))
            inputs |= watched
        making.made[variant] = making.add(self, f"train-{variant}", variant, keys, place, parts, inputs)
        making.last = variant

    def in_several(self, step: Step) -> bool:
        """See `Stage`."""
        return True

    def shown(self, step: Step) -> dict[str, Any]:
        """See `Stage`; the gate shows its own keys."""
        elsewhere = ("gate", "task", "rewards", "watch")
        return {key: value for key, value in super().shown(step).items() if key not in elsewhere}

    def estimate(self, step: Step, plan: Planned, sizes: Sizes) -> Needs:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, TrainKeys)
        ways = {"auto": [False, True], True: [True], False: [False]}[keys.shard] if sizes.processes > 1 else [False]
        if keys.shard == "auto" and _unsplittable(keys, step.parts["objective"]):
            ways = [False]
        for shard in ways:  # the first that fits, else the last
            memory = partial(_memory, keys, step.parts["objective"], sizes, sizes.processes if shard else 1)
            at_once = sequences_at_once(keys.batch, keys.at_once, sizes.processes)
            if keys.micro_batch == "auto":
                at_once = largest_that_fits(keys.batch, sizes.processes, memory, sizes.free)
            if sizes.free is None or memory(at_once) <= sizes.free:
                break
        chosen: dict[str, int] = {"micro_batch": at_once} if keys.micro_batch == "auto" else {}
        chosen |= {"shard": shard} if keys.shard == "auto" and sizes.processes > 1 else {}
        # The last checkpoint, and the one that is being written.
        disk = sizes.checkpoint + sizes.quantized * LATENT_BYTES
        return Needs(memory(at_once), disk, 2 * _optimizer(keys, sizes)[1], chosen)

    def lighter(self, step: Step, device: str) -> dict[str, Any]:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, TrainKeys)
        found: dict[str, Any] = {}
        together = 1 if keys.micro_batch == "auto" else keys.at_once or keys.batch
        if smaller := next((size for size in range(together // 2, 0, -1) if keys.batch % size == 0), 0):
            found["micro_batch"] = smaller
        if not keys.recomputes(device):
            found["gradient_checkpointing"] = True
        if keys.max_tokens > 2:
            found["max_tokens"] = keys.max_tokens // 2
        if keys.shard is False and not _unsplittable(keys, step.parts["objective"]):
            found["shard"] = True
        return found

    def check(self, step: Step, look: Look) -> Iterator[Finding]:
        """See `Stage`."""
        keys = step.settings
        assert isinstance(keys, TrainKeys)
        yield from _lengths(step, keys, look)
        rates = {name: getattr(keys, name) for name in RATES}
        layers = look.plan.known_schemes(step, look.config)
        trained = [scheme for name, scheme in (layers or {}).items() if keys.train_embedding or name not in ENDS]
        zeros = not trained or look.plan.has_zeros(trained)
        warm = warm_steps(keys.schedule, keys.warmup, keys.steps)
        for name, level, text, fix in doubtful(rates, keys.optimizer, keys.lr_in, warm=warm, zeros=zeros):
            yield step.finding(level, name, text, fix)
        yield from _without_effect(step, keys)
        try:
            split_batch(keys.batch, keys.at_once, look.processes)
        except UnevenBatch as error:
            yield step.finding("error", error.key, error.message, error.hint)
        for name, value, known in (("schedule", keys.schedule, SCHEDULES), ("optimizer", keys.optimizer, OPTIMIZERS)):
            if value not in known:
                near = nearest(value, known)
                fix = f"Did you mean '{near}'?" if near else f"Known: {', '.join(known)}."
                yield step.finding("error", name, f"'{value}' is not known.", fix)
        if keys.shard is True and (why := _unsplittable(keys, step.parts["objective"])):
            yield step.finding("error", "shard", f"the model cannot be split: {why}.", "Leave it out, or say false.")
        if keys.train_embedding and layers is not None:
            yield from _ends(step, layers)
        if keys.save_steps is not None and keys.save_steps > keys.steps:
            text = f"no checkpoint before the last of {keys.steps} steps; interrupted, it starts over. By time: 10m."
            yield step.finding("note", "save_every", text)
        if keys.teacher is not None:
            for problem in about_teacher(keys.teacher, look.config, keys.max_tokens, offline=look.offline):
                yield step.finding(problem.level, "teacher", problem.text, problem.hint)
        if not look.plan.recipe.evaluate:
            yield Finding("note", "nothing is evaluated: the report will show losses only.", "Add `evaluate:`.")


def _optimizer(keys: TrainKeys, sizes: Sizes) -> tuple[int, int]:
    """How many parameters get a gradient, and what a checkpoint of the optimizer takes, in bytes."""
    rest = sizes.rest if keys.other_lr or keys.train_embedding else 0
    moved = (keys.scale_lr is not None) + (keys.zero_lr is not None)
    masters = rest if keys.lr is None else sizes.quantized + rest
    return sizes.quantized + rest, sizes.optimizer(masters, MOMENTS.get(keys.optimizer, 2), moved)


def _memory(keys: TrainKeys, objective: Use, sizes: Sizes, shards: int, at_once: int) -> float:
    """What a process takes with its model split in so many parts and so many sequences per forward pass, in bytes."""
    card, (trained, optimizer) = objective.card, _optimizer(keys, sizes)
    teachers = [keys.teacher] if objective.teacher else []
    watches = keys.watch is not None
    if watches and None not in teachers:
        teachers.append(None)
    counted = min(keys.max_tokens, getattr(objective.options, "max_completion_tokens", None) or keys.max_tokens)
    positions = engine_positions(keys.max_tokens)
    training = Learning(
        sizes,
        trained=trained,
        optimizer=optimizer + (sizes.quantized if keys.lr is None else 0),  # the codes, a byte each
        teachers=sum(sizes.teacher(teacher) for teacher in teachers),
        shards=shards,
        saves=keys.save_steps is None or keys.save_steps < keys.steps,
        cache=sizes.cache(max(1, keys.batch // sizes.processes) + 1, positions) if card.writes else 0,
        together=sizes.model * (card.writes or watches) + (sizes.teacher(None) if watches else 0),
    )
    numbers = at_once * keys.max_tokens * sizes.activations(recomputed=keys.recomputes(sizes.device))
    return training.memory(numbers * sizes.width + sizes.logits(at_once * counted, card.logits))


def _watched(making: Making, keys: WatchKeys, place: Place) -> tuple[Use | None, dict[str, str]]:
    """The task that looks on, and the steps that write what it reads."""
    known = [card for card in making.known("task") if card.compares]
    if not any(keys.task in (card.name, card.full_name) for card in known):
        those = ", ".join(card.name for card in known)
        making.problem(f"{place}: '{keys.task}' compares no models; those that do: {those}.")
        return None, {}
    use = making.use("task", keys, place)
    written = Produce().add_for(making, use, place) if use is not None else []
    return use, {f"{PRODUCED}-{number}-watch": name for number, name in enumerate(written)}


def _rewards(making: Making, keys: TrainKeys, place: Place, objective: Use) -> tuple[tuple[Use, float], ...]:
    """The rewards an objective is trained on, with their weights; all may be 0 where it learns from a teacher, too."""
    card = objective.card
    if not card.graded:
        if keys.rewards is not None:
            graded = ", ".join(card.name for card in making.known("objective") if card.graded)
            wanted = f"leave it out, or use one that is: {graded}"
            making.problem(f"{place.at('rewards')}: '{card.name}' is not trained on rewards; {wanted}.")
        return ()
    asked = REWARDS if keys.rewards is None else keys.rewards
    if not any(reward.weight for reward in asked.values()) and not objective.teacher:
        also = f", or set {' or '.join(card.teacher)}" if isinstance(card.teacher, tuple) else ""
        making.problem(f"{place.at('rewards')}: every weight is 0, so nothing would be learned; change one{also}.")
    found = [
        (making.named("reward", name, place.at("rewards", name), reward.options), reward.weight)
        for name, reward in asked.items()
    ]
    return tuple((use, weight) for use, weight in found if use is not None)


def _ends(step: Step, layers: Collection[str]) -> Iterator[Finding]:
    """Whether there is an embedding or a head on a grid to train."""
    if not any(end in layers for end in ENDS):
        text = "neither the embedding nor the head is quantized, so there is nothing to train on a grid."
        fix = "Leave it out, or give them a scheme: `scheme: {default: w2g128, lm_head: w4g128, embed_tokens: w4g128}`."
        yield step.finding("error", "train_embedding", text, fix)


def _unsplittable(keys: TrainKeys, objective: Use) -> str:
    """Why a training cannot have its model split over processes; "" if it can."""
    if not OPTIMIZERS.get(keys.optimizer, True):
        return f"{keys.optimizer} trains every layer as one matrix"
    engine = getattr(getattr(objective.options, "rollouts", None), "engine", "auto")
    if engine not in ("auto", "transformers"):
        return f"completions come from the engine '{engine}', which needs whole weights that stay where they are"
    return ""


def _lengths(step: Step, keys: TrainKeys, look: Look) -> Iterator[Finding]:
    context = look.config.context if look.config else None
    if context is not None and keys.max_tokens > context:
        text = f"{keys.max_tokens} tokens, but the model's context is {context}."
        yield step.finding("error", "max_tokens", text, f"Use at most {context}.")
    if keys.data.split == "test":
        text = "this reads the test split."
        yield step.finding("warning", "data.split", text, "Scores on that data will say nothing; use train.")


def _without_effect(step: Step, keys: TrainKeys) -> Iterator[Finding]:
    """Keys of objectives that are trained on rewards, for one that is not; of latent weights, where there are none."""
    objective = step.parts["objective"]
    idle = {}
    if not objective.card.graded:
        idle = dict.fromkeys(("task", "gate"), f"'{objective.card.name}' is not trained on rewards")
    elif not objective.rewarded:
        idle = {"gate": "no reward counts"}
    if keys.lr is None:
        idle |= dict.fromkeys(("lr_in", "latent_reach", "weight_decay"), "lr is null, so codes stay")
    if keys.schedule == "constant" and keys.warmup:
        idle["warmup"] = "a constant schedule has none (constant_with_warmup does)"
    for name, why in idle.items():
        if getattr(keys, name) != TrainKeys.model_fields[name].default:
            yield step.finding("warning", name, f"{why}: this has no effect.", "Leave it out.")
