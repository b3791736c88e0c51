"""The same things from Python, for people with a training loop of their own.

    quantized = rqat.quantize("Qwen/Qwen3-0.6B", method="gptq", scheme="w2g128", calibration=texts)
    optimizer = quantized.optimizer(lr=1e-5)       # for any loop, or a trainer's `optimizers=(optimizer, scheduler)`
    rqat.save(quantized, "w2")                     # and rqat.load("w2")
    rqat.export(quantized, "served", format="compressed-tensors")
    rqat.evaluate(quantized, "gsm8k", limit=100).results["accuracy"]

Nothing here does work of its own: these functions call what the stages of a recipe call, and give the same bytes.
"""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .contracts import Exporter, QuantizedWeight
from .errors import ModelError, RecipeError, RqatError
from .job import Silence
from .keys import ModelKeys
from .model.activations import TokenBatch
from .model.blocks import quantize_model
from .model.checkpoint import keep_generation_settings, save_checkpoint
from .model.devices import default_device, device_called
from .model.hub import resolve
from .model.load import load_model
from .model.native import load_quantized
from .model.transforms import Applied, apply_transforms
from .registry import Registry
from .stages import keys_of
from .stages.budget.given import Size, chosen_widths, given_budget
from .stages.calibrate.given import Calibration, given_text
from .stages.evaluate.given import Asked
from .stages.export.run import export_checkpoint, tell_excess
from .stages.quantize.given import given_quantizer
from .stages.quantize.run import told_notes
from .storage import PARTIAL, publish, writable_folder
from .train.latents import first_latents, load_latents, save_latents
from .train.optimizer import QuantizedOptimizer

if TYPE_CHECKING:
    import transformers

    from .evals.harness import Evaluation

log = logging.getLogger("rqat")


class QuantizedModel:
    """A quantized model in memory.

    Attributes:
        model: a plain Hugging Face model whose weights are on the grid; train it with `optimizer`, or use it as any.
        tokenizer: its tokenizer.
        source: path or hub name of the model before quantization, where it is known.
        trained_by: the optimizer that has the codes since training began; `optimizer` sets it.
        transforms: what the model went through before it was quantized; their hooks are attached.
        chosen: how a budget's widths were found: what it asked for, the bytes and KL that are expected, the scheme of
            every layer, and of every choice what each width takes and costs; None without a budget.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        layers: Mapping[str, QuantizedWeight],
        *,
        source: str | None = None,
        folder: Path | None = None,
        transforms: Sequence[Applied] = (),
        chosen: dict[str, Any] | None = None,
    ) -> None:
        """Holds what it is given.

        Args:
            layers: the quantized layers by full name, each with its scheme.
            transforms: what the model went through before; their hooks are attached.
            folder: the checkpoint they were loaded from, where latent weights may lie.
        """
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.trained_by: QuantizedOptimizer | None = None
        self.transforms, self.chosen = list(transforms), chosen
        self._layers, self._folder = dict(layers), folder
        # Trainers change both (`use_cache=False`, for one), and what is saved would generate many times slower.
        self._configs = copy.deepcopy((model.config, model.generation_config))

    @property
    def layers(self) -> dict[str, QuantizedWeight]:
        """Codes, scales and zero points of every quantized layer, by full name, as they are now."""
        if self.trained_by is None:
            return self._layers
        return self.trained_by.quantized_layers()

    @property
    def schemes(self) -> dict[str, str]:
        """The spelled scheme of every quantized layer, by full name: with a `default`, what `scheme` takes."""
        return {name: str(layer.scheme) for name, layer in self.layers.items()}

    def optimizer(
        self, *, lr: float | None, source: str | Path | transformers.PreTrainedModel | None = None, **options: Any
    ) -> QuantizedOptimizer:
        """An optimizer that keeps this model on its grid, for any loop or trainer.

        Latent weights start where an earlier training left them (`rqat.load`), else at the weights before quantization
        where those are known, else in the middle of their cells; `latents=` says otherwise.

        Args:
            lr: learning rate of the latent weights; None: codes stay, and there are none.
            source: the model before quantization, by name, or loaded and as its transforms left it; None is the one
                that was named to `rqat.quantize`, if one was.
            options: of `rqat.QuantizedOptimizer`: `scale_lr`, `zero_lr`, `other_lr`, `weight_decay`, `inner`, ...

        Raises:
            RqatError: see `QuantizedOptimizer`, and `rqat.quantize` for a model that cannot be loaded.
        """
        layers = self.layers
        if lr is not None and options.get("latents") is None:
            options["latents"] = self._latents(layers, source)
        self.trained_by = QuantizedOptimizer(self.model, layers, lr=lr, **options)
        return self.trained_by

    def _latents(self, layers: Mapping[str, QuantizedWeight], source: Any) -> Mapping[str, Any]:
        carried = load_latents(self._folder, layers) if self._folder else {}
        before = source if source is not None else self.source
        if carried or before is None:
            return carried
        if isinstance(before, (str, Path)):
            before, _ = load_model(ModelKeys(path=str(before)), device=str(self.model.device))
            apply_transforms(before, [(one.name, one.options, one.make()) for one in self.transforms])
        return first_latents(before, self.model, layers)[0]

    def _files(self) -> Path | None:
        """The folder that the model was read from, where it is known and there."""
        with suppress(RqatError):
            return self._folder or (resolve(ModelKeys(path=self.source)) if self.source else None)
        return None

    @contextmanager
    def _as_made(self) -> Iterator[None]:
        """The configurations as they were before any training."""
        changed = self.model.config, self.model.generation_config
        self.model.config, self.model.generation_config = self._configs
        try:
            yield
        finally:
            self.model.config, self.model.generation_config = changed


def quantize(
    model: str | Path | transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
    method: str | Sequence[str | Mapping[str, Any]] = "gptq",
    scheme: str | Mapping[str, str] = "w2g128",
    *,
    calibration: Calibration | None = None,
    skip: Sequence[str] = (),
    indivisible: Literal["error", "skip"] = "error",
    budget: Size | None = None,
    format: str | Mapping[str, Any] | None = None,
    device: str | None = None,
    **options: Any,
) -> QuantizedModel:
    """Quantizes a model without training.

    Args:
        model: folder, hub name, `builtin:tiny-reasoner`; or a loaded model, which is quantized in place.
        tokenizer: of a loaded model.
        method: name of the quantizer; or a list of transforms and a quantizer, spelled as in a recipe:
            `[{"method": "rotate", "seed": 1}, "gptq"]`.
        scheme: spelling of the grid, or a mapping of `default` and patterns to spellings, as in a recipe.
        calibration: what quantizers see activations of; see `Calibration`. Of rows, each is one sequence, cut at 512
            tokens or where the model's context ends.
        skip: shell patterns on full names of layers to leave as they are.
        indivisible: what to do with layers whose input features do not split into whole groups.
        budget: what the file may take, as in a recipe: `"420MB"`, `2.8` bits per parameter in all, or a mapping with
            `size`, `widths`, `ends`, `together`, `samples`. Widths are chosen for the layers that no pattern of the
            scheme names, by what they cost on the sequences behind those of the calibration; of rows, on the last
            `samples`. Every width of every layer is kept in a temporary folder meanwhile.
        format: whose bytes a budget counts, spelled as in a recipe's `export`; None: those that the schemes say.
        device: where a model that is named is loaded; None: CUDA where there is one.
        options: the quantizer's.

    Raises:
        RecipeError: an option that the quantizer does not have, or of a wrong value; calibration is needed and there
            is none.
        RqatError: the budget cannot be had of this model.
        UnknownName: no such quantizer, source or format.
        DataError: there are too few rows.
        ModelError: the model is missing, damaged or not supported, or the scheme does not fit its layers.
    """
    registry = Registry.current()
    chosen = given_quantizer(registry, method, scheme, {"skip": skip, "indivisible": indivisible, **options})
    keys, quantizer, schemes = chosen.keys, chosen.quantizer, chosen.schemes
    size = given_budget(registry, budget, format, chosen)
    if calibration is None and (quantizer.needs or size is not None):
        what = f"method '{keys.method}'" if quantizer.needs else "a budget, whose costs are measured on text,"
        raise RecipeError(
            f"quantize: {what} needs calibration.",
            hint="Give calibration= a list of texts or rows, or the name of a source (`rqat plugins ls`).",
        )
    source = str(model) if isinstance(model, (str, Path)) else None
    loaded, tokenizer = _opened(model, tokenizer, device)
    transforms = apply_transforms(loaded, chosen.transforms)
    batches: list[TokenBatch] = []
    found: dict[str, Any] | None = None
    if calibration is not None and (quantizer.needs or size is not None):
        text = given_text(registry, calibration, loaded, size.keys.samples if size else 0)
        batches = text.batches(tokenizer, str(loaded.device)) if quantizer.needs else []
        if size is not None:
            schemes, found = chosen_widths(size, chosen, text, loaded, tokenizer, batches)
    training = loaded.training
    layers, reports = quantize_model(
        loaded.eval(), batches, quantizer, schemes, skip=keys.skip, indivisible=keys.indivisible
    )
    loaded.train(training)
    for line in told_notes({report.name: report.note for report in reports if report.note}):
        log.warning("%s", line)
    return QuantizedModel(loaded, tokenizer, dict(layers), source=source, transforms=transforms, chosen=found)


def _a_folder(given: Any, function: str) -> Path:
    """The folder that stands in place of a quantized model."""
    if not isinstance(given, (str, Path)):
        raise _not_quantized(given, function)
    return Path(given)


def _not_quantized(given: Any, function: str) -> ModelError:
    return ModelError(
        f"{function} takes what rqat.quantize or rqat.load returned, not a {type(given).__name__}.",
        hint="Keep that object: its `.model` is the plain model.",
    )


def save(quantized: QuantizedModel, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a checkpoint that `rqat.load`, `rqat eval` and a recipe take; after training, latent weights too.

    Args:
        overwrite: the folder may hold something, which is removed.

    Raises:
        RunError: the folder is not empty, the disk is full, or it is not writable.
        RqatError: the model's weights are not what `quantized.layers` stand for.
    """
    if not isinstance(quantized, QuantizedModel):
        raise _not_quantized(quantized, "rqat.save")
    target = writable_folder(Path(folder), overwrite).resolve()
    partial = target.with_name(f"{target.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    layers = quantized.layers
    try:
        with quantized._as_made():
            save_checkpoint(partial, quantized.model, quantized.tokenizer, layers, quantized.transforms)
        if (files := quantized._files()) is not None:
            keep_generation_settings(files, partial)
    except ValueError as error:
        shutil.rmtree(partial)
        raise RqatError(
            f"rqat.save: {error}.",
            hint="Train with `quantized.optimizer(...)`, or set `quantized.trained_by` to the optimizer that did.",
        ) from error
    if quantized.trained_by is not None and not quantized.trained_by.fixed_codes:
        save_latents(partial, quantized.trained_by.latents(), layers)
    publish(partial, target)
    return Path(folder)


def load(folder: str | Path, *, device: str | None = None) -> QuantizedModel:
    """Reads what `rqat.save`, a quantize or train step of a run, or the exporter `rqat` wrote; also gptq, awq,
    compressed-tensors and MLX checkpoints of any tool.

    Args:
        device: None: CUDA where there is one.

    Raises:
        ModelError: a file is missing or damaged, or was written by another version.
    """
    found = load_quantized(Path(folder), device=str(device_called(device)))
    return QuantizedModel(found.model, found.tokenizer, found.layers, folder=Path(folder), transforms=found.transforms)


def export(
    quantized: QuantizedModel | str | Path,
    folder: str | Path,
    format: str = "compressed-tensors",  # the recipe's word
    *,
    device: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Writes a checkpoint that servers load, and checks it; see `rqat.stages.export.run.export_checkpoint`.

    Args:
        quantized: a model in memory, or the folder of one that was saved.
        format: name of the exporter.
        device: where logits are compared; None is the model's.
        overwrite: the folder may hold something, which is removed.
        options: the exporter's.

    Returns:
        format, bytes, layers, and the outcome of the checks.

    Raises:
        RunError: the folder is not empty.
        UnknownName: no such format. RecipeError: an option that it does not have.
        ModelError: the format cannot hold a layer. PluginError, NumericsError: what was written is another model.
    """
    registry = Registry.current()
    keys = keys_of("export", {"format": format, **options})
    card = registry.card("exporter", keys.format)
    exporter: Exporter = registry.make(card, registry.options(card, keys.options, "export"))
    target = writable_folder(Path(folder), overwrite).resolve()

    def written(start: Path, base: str, place: str) -> dict[str, Any]:
        return export_checkpoint(start, target, exporter, card, base=base, device=place, progress=Silence())

    if not isinstance(quantized, QuantizedModel):
        start = _a_folder(quantized, "rqat.export")
        return written(start, str(quantized), str(device_called(device)))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as beside:
        base = quantized.source or str(quantized.model.config._name_or_path or target.name)
        found = written(save(quantized, Path(beside) / "start"), base, device or quantized.model.device.type)
    if quantized.chosen is not None:
        tell_excess(found, quantized.chosen["budget"])
    return found


def evaluate(
    model: QuantizedModel | str | Path | transformers.PreTrainedModel,
    task: str,
    *,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
    original: str | Path | transformers.PreTrainedModel | None = None,
    limit: int | None = None,
    batch: int = 32,
    **options: Any,
) -> Evaluation:
    """Runs a task on a model.

    Args:
        model: quantized or not, in memory or by its path or hub name; an exported folder, too.
        task: name of the task; of lm-eval's own, `lm-eval:arc_easy`.
        tokenizer: of a loaded model that is not a `QuantizedModel`.
        original: of a task that compares models (`kl`): the model before quantization; None is the one that was named
            to `rqat.quantize`, if one was.
        limit: use the first `limit` problems only.
        batch: prompts completed together.
        options: the task's.

    Returns:
        `.results`, with accuracy and its interval, or the `figures` of a comparison; `.samples`, a mapping for each
        completion or row.

    Raises:
        UnknownName: no such task. RecipeError: an option that it does not have. DataError: its problems are missing.
        ModelError: the model is missing, damaged or not supported. RqatError: there is no original to compare with.
    """
    asked = Asked(Registry.current(), {"task": task, "limit": limit, "batch": batch, **options})
    if isinstance(model, QuantizedModel):
        return asked.of((model.model, model.tokenizer), model.source if original is None else original, _readable)
    return asked.of(_readable(model, tokenizer, default_device()), original, _readable)


def _readable(model: Any, tokenizer: Any, device: str) -> Any:
    """A model that is only read, quantized or not, and its tokenizer."""
    from .generation.backend import open_model

    if isinstance(model, (str, Path)):
        return open_model(ModelKeys(path=str(model)), device=device)
    return _opened(model, tokenizer, None)


def _opened(
    model: str | Path | transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase | None,
    device: str | None,
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """A model that may have been loaded already, and its tokenizer."""
    if isinstance(model, (str, Path)):
        model, own = load_model(ModelKeys(path=str(model)), device=str(device_called(device)))
        tokenizer = own if tokenizer is None else tokenizer
    if isinstance(model, QuantizedModel):
        raise ModelError("this model is quantized already.", hint="Quantize the one it was made from.")
    if not hasattr(model, "config"):
        raise ModelError(
            f"a {type(model).__name__} is not a model of transformers.", hint="Give a folder, a hub name, or a model."
        )
    if not callable(tokenizer):
        what = "without its tokenizer" if tokenizer is None else f"with {tokenizer!r:.60}, which is no tokenizer"
        raise ModelError(f"a loaded {type(model).__name__} comes {what}.", hint="Pass tokenizer=, or name its path.")
    return model, tokenizer
