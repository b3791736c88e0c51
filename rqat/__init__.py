"""rqat: quantization-aware training for reasoning language models at 2 and 3 bits.

This is the public face, and all a plugin author needs; importing it does not import torch.
"""

from .contracts import (
    Block,
    Exporter,
    LinearStats,
    Objective,
    Options,
    Part,
    QuantizedWeight,
    Quantizer,
    Row,
    SharedInput,
    Source,
    Split,
    Statistic,
    Task,
    TaskOptions,
    Training,
    Verdict,
)
from .errors import DataError, ModelError, NumericsError, PluginError, RecipeError, RqatError, RunError, UnknownName
from .hookspecs import hookimpl
from .scheme import ROW, Scheme

__version__ = "0.1.0"

__all__ = [
    "ROW",
    "Block",
    "DataError",
    "Exporter",
    "LinearStats",
    "ModelError",
    "NumericsError",
    "Objective",
    "Options",
    "Part",
    "PluginError",
    "QuantizedWeight",
    "Quantizer",
    "RecipeError",
    "Row",
    "RqatError",
    "RunError",
    "Scheme",
    "SharedInput",
    "Source",
    "Split",
    "Statistic",
    "Task",
    "TaskOptions",
    "Training",
    "UnknownName",
    "Verdict",
    "__version__",
    "hookimpl",
]
