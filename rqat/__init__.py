"""rqat: quantization-aware training for reasoning language models at 2 and 3 bits.

This is the public face: the contracts, which are all a plugin author needs, and functions that quantize, train, save,
export and evaluate, for people with a training loop of their own. Importing it does not import torch: those functions
are fetched from `rqat.api` when they are first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .contracts import (
    IGNORED,
    Block,
    Command,
    Comparison,
    ComparisonOptions,
    Completion,
    Context,
    Exporter,
    File,
    Grader,
    Grid,
    Level,
    LinearStats,
    LoadedModel,
    Message,
    ModelShape,
    Neutral,
    Objective,
    Options,
    Part,
    Problem,
    QuantizedWeight,
    Quantizer,
    Reader,
    Reward,
    RewardFunction,
    Rollouts,
    Row,
    SharedInput,
    Source,
    Split,
    Start,
    Statistic,
    Streams,
    Task,
    TaskOptions,
    TokenRow,
    Training,
    Transform,
    Verdict,
)
from .errors import (
    DataError,
    MissingPackage,
    ModelError,
    NumericsError,
    PluginError,
    RecipeError,
    RqatError,
    RunError,
    UnknownName,
)
from .generation.loops import is_looping
from .hookspecs import (
    API,
    Register,
    RegisterExporter,
    RegisterGrid,
    RegisterObjective,
    RegisterQuantizer,
    RegisterReward,
    RegisterSource,
    RegisterTask,
    RegisterTransform,
    hookimpl,
)
from .scheme import ROW, Scheme, Schemes
from .text_files import parse_json, read_text, refuse_half_pairs, refuse_pointer

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    import transformers

    from .api import QuantizedModel, evaluate, export, load, quantize, save
    from .generation.sampling import context_length
    from .train.optimizer import QuantizedOptimizer
    from .train.shards import as_forward
    from .train.teacher import check_linear_head, scaled_logits

__version__ = "0.1.0"

__all__ = [
    "API",
    "IGNORED",
    "ROW",
    "Block",
    "Command",
    "Comparison",
    "ComparisonOptions",
    "Completion",
    "Context",
    "DataError",
    "Exporter",
    "File",
    "Grader",
    "Grid",
    "Level",
    "LinearStats",
    "LoadedModel",
    "Message",
    "MissingPackage",
    "ModelError",
    "ModelShape",
    "Neutral",
    "NumericsError",
    "Objective",
    "Options",
    "Part",
    "PluginError",
    "Problem",
    "QuantizedModel",
    "QuantizedOptimizer",
    "QuantizedWeight",
    "Quantizer",
    "Reader",
    "RecipeError",
    "Register",
    "RegisterExporter",
    "RegisterGrid",
    "RegisterObjective",
    "RegisterQuantizer",
    "RegisterReward",
    "RegisterSource",
    "RegisterTask",
    "RegisterTransform",
    "Reward",
    "RewardFunction",
    "Rollouts",
    "Row",
    "RqatError",
    "RunError",
    "Scheme",
    "Schemes",
    "SharedInput",
    "Source",
    "Split",
    "Start",
    "Statistic",
    "Streams",
    "Task",
    "TaskOptions",
    "TokenRow",
    "Training",
    "Transform",
    "UnknownName",
    "Verdict",
    "__version__",
    "as_forward",
    "check_linear_head",
    "context_length",
    "evaluate",
    "export",
    "grid_of",
    "hookimpl",
    "is_looping",
    "load",
    "load_packed",
    "parse_json",
    "quantize",
    "quantizer_of",
    "read_text",
    "refuse_half_pairs",
    "refuse_pointer",
    "save",
    "scaled_logits",
]


_FETCHED = {
    ".api": ("QuantizedModel", "evaluate", "export", "load", "quantize", "save"),
    ".generation.sampling": ("context_length",),
    ".train.optimizer": ("QuantizedOptimizer",),
    ".train.shards": ("as_forward",),
    ".train.teacher": ("check_linear_head", "scaled_logits"),
}
"""What is fetched when it is first named, since it imports torch, by the module it is in."""


def __getattr__(name: str) -> Any:
    for module, names in _FETCHED.items():
        if name in names:
            return getattr(import_module(module, __name__), name)
    raise AttributeError(f"module 'rqat' has no attribute '{name}'")


def grid_of(scheme: Scheme) -> Grid:
    """The grid that a scheme names (`w2g128-seq`), of whichever plugin offers it; see `rqat.Grid`.

    Raises:
        UnknownName: nobody offers a grid of that name.
        PluginError: its plugin is broken.
    """
    from .grids import grid_of as found

    return found(scheme)


def quantizer_of(start: Start) -> Quantizer:
    """The quantizer that an option of type `rqat.Start` names, built with its options.

    Raises:
        UnknownName: nobody offers a quantizer of that name.
        RecipeError: an option that it does not have, or of a wrong value.
        PluginError: its plugin is broken.
    """
    from .registry import Registry

    registry = Registry.current()
    card = registry.card("quantizer", start.method)
    made: Quantizer = registry.make(card, registry.options(card, start.options))
    return made


def load_packed(
    path: str | Path, device: str | None = None, dtype: torch.dtype | None = None
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Loads an exported checkpoint, or a step of a run, on packed weights; see `rqat.packed.load.load_packed`.

    Args:
        device: "cuda", "cuda:1", "cpu"; None: CUDA where there is one.
        dtype: of activations; None: bfloat16 on CUDA, float32 on the CPU.

    Raises:
        ModelError: the checkpoint is not quantized, or not in a way that can be packed; it is damaged or incomplete;
            there is no such device.
    """
    from .packed.load import load_packed as load

    return load(path, device, dtype)
