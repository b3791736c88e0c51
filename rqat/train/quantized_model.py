"""A quantized model in memory, with what it takes to train and to save it: what the functions of `rqat.api` pass on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contracts import QuantizedWeight
from ..keys import ModelKeys
from ..model.load import load_model
from ..model.transforms import Applied, apply_transforms
from .latents import first_latents, load_latents
from .optimizer import QuantizedOptimizer

if TYPE_CHECKING:
    import transformers


class QuantizedModel:
    """A quantized model in memory.

    Attributes:
        model: a plain Hugging Face model whose weights are on the grid; train it with `optimizer`, or use it as any.
        tokenizer: its tokenizer.
        source: path or hub name of the model before quantization, where it is known.
        trained_by: the optimizer that has the codes since training began; `optimizer` sets it.
        transforms: what the model went through before it was quantized; their hooks are attached.
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
    ) -> None:
        """Holds what it is given.

        Args:
            layers: the quantized layers by full name, each with its scheme.
            transforms: what the model went through before; their hooks are attached.
            folder: the checkpoint they were loaded from, where latent weights may lie.
        """
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.trained_by: QuantizedOptimizer | None = None
        self.transforms = list(transforms)
        self._layers, self._folder = dict(layers), folder
        # Trainers change both (`use_cache=False`, for one), and what is saved would generate many times slower.
        self._configs = copy.deepcopy((model.config, model.generation_config))

    @property
    def layers(self) -> dict[str, QuantizedWeight]:
        """Codes, scales and zero points of every quantized layer, by full name, as they are now."""
        if self.trained_by is None:
            return self._layers
        return self.trained_by.quantized_layers()

    def optimizer(
        self, *, lr: float, source: str | Path | transformers.PreTrainedModel | None = None, **options: Any
    ) -> QuantizedOptimizer:
        """An optimizer that keeps this model on its grid, for any loop or trainer.

        Latent weights start where an earlier training left them (`rqat.load`), else at the weights before quantization
        where those are known, else in the middle of their cells; `latents=` says otherwise.

        Args:
            lr: learning rate of the latent weights.
            source: the model before quantization, by name, or loaded and as its transforms left it; None is the one
                that was named to `rqat.quantize`, if one was.
            options: of `rqat.QuantizedOptimizer`: `scale_lr`, `zero_lr`, `other_lr`, `weight_decay`, `inner`, ...

        Raises:
            RqatError: see `QuantizedOptimizer`, and `rqat.quantize` for a model that cannot be loaded.
        """
        layers = self.layers
        if options.get("latents") is None:
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

    @contextmanager
    def as_made(self) -> Iterator[None]:
        """The configurations as they were before any training."""
        changed = self.model.config, self.model.generation_config
        self.model.config, self.model.generation_config = self._configs
        try:
            yield
        finally:
            self.model.config, self.model.generation_config = changed
