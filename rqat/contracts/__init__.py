"""What a plugin implements, and what passes between it and the host: contract 1.

    options.py      Options, File, Command, Part, Start, Grader, Problem, Context: what may be set, and checks of it
    grids.py        Grid, QuantizedWeight: how weights become codes and back
    quantizers.py   Quantizer, LinearStats, Block, Streams: codes without training
    transforms.py   Transform: what is done to a whole model before calibration, and hooks that stay with it
    data.py         Row, Message, Source, LoadedModel: rows to calibrate and to train on
    tasks.py        Task, Comparison, Reward, Completion: problems, answers, and what a completion or a model is worth
    objectives.py   Objective, Training: what a quantized model is trained for
    exporters.py    Exporter, Reader: files that servers load

Dimension letters, here and everywhere: `O` out features, `I` in features, `G` groups of input features, `R` rows of
groups, `g` weights in a group, `T` tokens, `B` batch, `V` vocabulary. Importing this package does not import torch.
"""

from .data import LoadedModel, Message, Row, Source, Split
from .exporters import Exporter, Reader
from .grids import Grid, QuantizedWeight
from .objectives import IGNORED, Objective, RewardFunction, Rollouts, Training
from .options import Command, Context, File, Grader, Level, ModelShape, Neutral, Options, Part, Problem, Start
from .quantizers import Block, LinearStats, Quantizer, SharedInput, Statistic, Streams
from .tasks import Comparison, ComparisonOptions, Completion, Reward, Task, TaskOptions, TokenRow, Verdict
from .transforms import Transform

__all__ = [
    "IGNORED",
    "Block",
    "Command",
    "Comparison",
    "ComparisonOptions",
    "Completion",
    "Context",
    "Exporter",
    "File",
    "Grader",
    "Grid",
    "Level",
    "LinearStats",
    "LoadedModel",
    "Message",
    "ModelShape",
    "Neutral",
    "Objective",
    "Options",
    "Part",
    "Problem",
    "QuantizedWeight",
    "Quantizer",
    "Reader",
    "Reward",
    "RewardFunction",
    "Rollouts",
    "Row",
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
    "Verdict",
]
