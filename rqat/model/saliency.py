"""How much depends on what the linear layers put out, token by token: what their Hessians may be weighted by.

To second order, the divergence KL(original || quantized) that an error in a layer's outputs makes is half its square in
the Fisher information: the expected square of `d log p(y) / d output` over tokens `y` that the model itself would
write. One `y` is drawn for every place of the calibration text. What a token counts is the sum of that square over the
outputs of the layers that share an input: GuidedQuant (arXiv 2505.07004) with one group of outputs, and drawn tokens in
place of the text's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .experts import routed
from .memory import BACKWARD_TOKENS
from .watching import hidden_of

if TYPE_CHECKING:
    import transformers

Call = Callable[[Tensor], tuple[Tensor, Sequence[Mapping[str, Any]]]]
"""Token ids `(B, T)` -> their embeddings, and the keywords each block is called with."""


def token_saliency(
    model: transformers.PreTrainedModel,
    blocks: Sequence[nn.Module],
    watched: Mapping[str, Sequence[str]],
    batches: Sequence[tuple[Tensor, Tensor | None]],
    call: Call,
    ends: Callable[[], Any],
) -> dict[str, list[Tensor]]:
    """Weights `(B T,)` float32 of every batch's tokens, 1 in the mean over those that are no padding.

    Args:
        model: as it is before quantization.
        blocks: its decoder layers, in order.
        watched: for every result, under its name, the full names of the linear layers that share the input.
        batches: token ids `(B, T)` and where they are no padding.
        call: see `Call`.
        ends: a context in which the model's blocks pass their inputs on unchanged.
    """
    device = next(model.parameters()).device
    sums = {key: [torch.zeros(ids.shape, device=device) for ids, _ in batches] for key in watched}

    def summing(number: int, part: slice) -> AbstractContextManager[None]:
        return _summing(model, watched, {key: own[number][part] for key, own in sums.items()})

    send_back(model, blocks, batches, call, ends, summing)
    return {key: _weights(own, batches) for key, own in sums.items()}


def send_back(
    model: transformers.PreTrainedModel,
    blocks: Sequence[nn.Module],
    batches: Sequence[tuple[Tensor, Tensor | None]],
    call: Call,
    ends: Callable[[], Any],
    around: Callable[[int, slice], AbstractContextManager[None]],
) -> None:
    """Draws a token for every place of the text, and sends the gradients of their log-likelihoods back.

    Args:
        model, blocks, batches, call, ends: see `token_saliency`.
        around: a context around the passes of some sequences: the number of their batch, and which of it they are.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    with _frozen(model), torch.no_grad():
        for number, (ids, mask) in enumerate(batches):
            rows = max(1, BACKWARD_TOKENS[device.type] // ids.shape[1])
            for start in range(0, len(ids), rows):
                part = slice(start, start + rows)
                real = None if mask is None else mask[part].to(device)
                with around(number, part):
                    _backward(model, blocks, ids[part].to(device), real, call, ends, generator)


def _backward(
    model: Any,
    blocks: Sequence[nn.Module],
    ids: Tensor,
    real: Tensor | None,
    call: Call,
    ends: Callable[[], Any],
    generator: torch.Generator,
) -> None:
    """Sends the gradients of drawn tokens' log-likelihoods back through the blocks, each run anew for that."""
    hidden, keywords = call(ids)
    states = [hidden]
    for block, own in zip(blocks, keywords, strict=True):
        states.append(hidden_of(block(states[-1], **own)))
    top = states.pop()
    gradient = torch.empty_like(top)
    with ends():
        for row in range(len(top)):  # one after the other: logits are wide
            with torch.enable_grad():
                end = top[row : row + 1].detach().requires_grad_()
                log_p = model(inputs_embeds=end, use_cache=False).logits[0].float().log_softmax(-1)
                drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
                likelihood = log_p.gather(1, drawn)[:, 0]
                if real is not None:
                    likelihood = likelihood * real[row]
                (own_gradient,) = torch.autograd.grad(likelihood.sum(), end)
            gradient[row] = own_gradient[0]
    for block, own in zip(reversed(blocks), reversed(keywords), strict=True):
        with torch.enable_grad():
            start = states.pop().detach().requires_grad_()
            out = hidden_of(block(start, **own))
            (gradient,) = torch.autograd.grad(out, start, gradient)


@contextmanager
def _summing(
    model: transformers.PreTrainedModel, watched: Mapping[str, Sequence[str]], sums: Mapping[str, Tensor]
) -> Iterator[None]:
    """Adds the squared gradients on what linear layers put out to `sums`, `(B, T)` each."""

    def hook(total: Tensor) -> Callable[[nn.Module, Any, Tensor], None]:
        def watch(module: nn.Module, given: Any, out: Tensor) -> None:
            tokens = routed(given[0])

            def add(gradient: Tensor) -> None:
                squares = gradient.float().square().sum(-1)
                if tokens is None:
                    total.add_(squares)
                else:  # of an expert
                    total.view(-1).index_add_(0, tokens, squares)

            if out.requires_grad:
                out.register_hook(add)

        return watch

    handles = [
        model.get_submodule(name).register_forward_hook(hook(sums[key]))
        for key, names in watched.items()
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients of parameters."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def _weights(sums: Sequence[Tensor], batches: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """Sums as weights, 1 in the mean; all 1 where nothing depends on the layer."""
    masks = [None if mask is None else mask.to(own.device) for own, (_, mask) in zip(sums, batches, strict=True)]
    real = [own if mask is None else own[mask] for own, mask in zip(sums, masks, strict=True)]
    mean = torch.cat([own.flatten() for own in real]).mean()
    return [(own / mean if mean > 0 else torch.ones_like(own)).flatten() for own in sums]
