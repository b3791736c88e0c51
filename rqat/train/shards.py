"""A model split over the processes that train together, by torch's FSDP2 (`fully_shard`).

Every parameter is split along its first dimension, as `torch.chunk` does: a process holds whole output rows of every
layer, and so whole groups of weights, each with its scale and its zero point. Before a decoder block is computed all
processes gather its weights, and afterwards each keeps its rows alone; backward leaves every process the averaged
gradient of its rows. So latents, scales, zero points and moments exist once, spread over the processes.

Gathering is a collective operation: all processes have to make the same forward passes, by way of the whole model.
Where they do not (while they write completions, or when one alone compares models) `whole` gathers everything first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..contracts import QuantizedWeight
from ..processes import Processes

if TYPE_CHECKING:
    import transformers

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks")
"""Of a module: where FSDP has its own among others."""


@dataclass(frozen=True)
class Share:
    """The rows that this process holds of every tensor; all of them unless told otherwise.

    Attributes:
        rank: of this process.
        count: of processes that a model is split over.
    """

    rank: int = 0
    count: int = 1

    def rows(self, length: int) -> slice:
        """Which of `length` rows."""
        size = -(-length // self.count)
        return slice(min(self.rank * size, length), min((self.rank + 1) * size, length))

    def of(self, tensor: Tensor) -> Tensor:
        """Its rows of a whole tensor: a view."""
        return tensor[self.rows(len(tensor))]

    def of_layers(self, layers: Mapping[str, QuantizedWeight]) -> dict[str, QuantizedWeight]:
        """Its rows of quantized layers: copies, so that the whole ones can be freed."""
        if self.count == 1:
            return dict(layers)
        return {name: _mapped(layer, lambda part: self.of(part).clone()) for name, layer in layers.items()}


ALL = Share()
"""Of one process, or of each of several that hold everything."""


def _mapped(layer: QuantizedWeight, function: Callable[[Tensor], Tensor]) -> QuantizedWeight:
    parts = {part: function(tensor) for part, tensor in layer.state().items()}
    return QuantizedWeight.from_state(parts, layer.scheme, layer.note)


def is_split(model: nn.Module) -> bool:
    """Whether `split` has been here, which leaves no parameter whole; asked before every forward pass."""
    first = next(model.parameters(), None)
    return first is not None and is_part(first)


def is_part(tensor: Tensor) -> bool:
    """Whether it is a DTensor, the class of which is imported by nobody who splits nothing."""
    return hasattr(tensor, "to_local")


def split(model: transformers.PreTrainedModel, processes: Processes) -> None:
    """Splits a model over the processes, in place; one that is split already stays as it is.

    A decoder block is gathered at a time; embedding, last norm and head together, which stay so until backward is over.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if is_split(model):
        return
    mesh = init_device_mesh(model.device.type, (processes.count,))
    blocks = set(model._no_split_modules or ())
    for module in [module for module in model.modules() if type(module).__name__ in blocks]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    whole: Any = model
    whole._is_accelerate_prepared = True  # else accelerate would wrap it in DDP, which it is no longer fit for


def local(tensor: Tensor) -> Tensor:
    """The rows of a split tensor that are here, or a tensor that is not split; shares its memory."""
    part: Any = tensor.detach()
    found: Tensor = part.to_local() if is_part(part) else part
    return found


def root_mean_square(tensors: Iterable[Tensor], split: bool = False) -> float:
    """Of all numbers in some tensors; if these are `split`, of what all processes hold, each of which has to ask."""
    squares, numbers = 0.0, 0
    for tensor in tensors:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        squares += float(torch.linalg.vector_norm(tensor.detach(), dtype=wide)) ** 2
        numbers += tensor.numel()
    parts: list[Any] = [(squares, numbers)]
    if split:
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (squares, numbers))
    squares, numbers = (sum(each) for each in zip(*parts, strict=True))
    return math.sqrt(squares / numbers) if numbers else 0.0


@contextmanager
def whole(*models: nn.Module) -> Iterator[None]:
    """Every process has all weights of these models inside, and none waits for another in a forward pass.

    To be entered by all processes. The weights are to be read only.
    """
    from torch.distributed.fsdp import FSDPModule

    split_ones = [module for model in models for module in model.modules() if isinstance(module, FSDPModule)]
    for module in split_ones:
        module.unshard()
    kept = [(module, name, vars(module)[name]) for module in split_ones for name in HOOKS[:2]]
    for module, name, hooks in kept:
        setattr(module, name, _others(hooks))
    try:
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)
        for module in split_ones:
            module.reshard()


def _others(hooks: Any) -> Any:
    """Without those of FSDP."""
    return type(hooks)(
        (number, hook)
        for number, hook in hooks.items()
        if not (getattr(hook, "__module__", None) or "").startswith("torch.distributed.fsdp")
    )


def gathered(part: Tensor, length: int, processes: Processes) -> Tensor:
    """A whole tensor of `length` rows from what `Share.of` gave to each; to be called by all processes."""
    size = -(-length // processes.count)
    padded = part.new_zeros(size, *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(processes.count)]
    torch.distributed.all_gather(parts, padded)
    return torch.cat(parts)[:length]


def join(model: nn.Module, processes: Processes) -> None:
    """Undoes `split` for good, where this process leads; the others only take part, and have a model no longer."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # the optimizer has written into the rows
    joined: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not is_part(parameter):
                continue
            if id(parameter) not in joined:  # the embedding and the head may be one
                all_rows = gathered(local(parameter), len(parameter), processes)
                kept = all_rows if processes.leads else all_rows.new_empty(0)
                joined[id(parameter)] = nn.Parameter(kept, requires_grad=parameter.requires_grad)
            module._parameters[name] = joined[id(parameter)]
    for module in model.modules():
        if isinstance(module, FSDPModule):
            for name in HOOKS:
                setattr(module, name, _others(vars(module)[name]))
            module.__class__ = type(module).__bases__[1]
    vars(model).pop("_is_accelerate_prepared", None)


def joined_layers(
    layers: Mapping[str, QuantizedWeight], rows: Mapping[str, int], device: str, processes: Processes
) -> dict[str, QuantizedWeight]:
    """Whole layers, on the CPU, from the rows of each process; empty but for the one that leads.

    Args:
        rows: how many every layer has.
    """
    found = {}
    for name, layer in layers.items():
        joined = _mapped(layer, partial(_joined, length=rows[name], device=device, processes=processes))
        if processes.leads:
            found[name] = joined
    return found


def _joined(part: Tensor, *, length: int, device: str, processes: Processes) -> Tensor:
    return gathered(part.to(device), length, processes).cpu()


def as_forward(model: nn.Module, function: Callable[..., Any], *arguments: Tensor) -> Any:
    """`function(*arguments)` in place of the forward pass of `model`, for a loss that needs only parts of a model.

    DDP averages the gradients of what its own forward pass has given, and of nothing else; FSDP gathers the weights of
    a model for its forward pass.

    Args:
        model: as a trainer hands it: plain, split, or wrapped in DDP.
        function: calls modules of the plain model, or the model.
        arguments: tensors.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if inner is model and not is_split(model):
        return function(*arguments)
    own = vars(inner).get("forward")

    def put_back() -> None:
        vars(inner).pop("forward", None)
        if own is not None:
            vars(inner)["forward"] = own

    def instead(*given: Tensor) -> Any:
        put_back()  # `function` may use it
        return function(*given)

    vars(inner)["forward"] = instead
    try:
        return model(*arguments)
    finally:
        put_back()
