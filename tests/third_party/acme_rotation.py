"""A stranger's transforms: the residual stream turned by a random Hadamard matrix, and activations in 8 bits a token.

`acme-rotate` is QuaRot's R1 (arXiv 2404.00456, section 4, stage 1): what writes into the residual stream is turned,
what reads from it is turned back, and every norm's weight goes into the layers behind it. It needs an untied head.
`acme-int8` rounds what every linear layer of a block reads to 8 bits, one scale for each token: forward hooks that have
to be there whenever the model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import rqat

if TYPE_CHECKING:
    import torch
    import transformers


class RotateOptions(rqat.Options):
    """Options of `acme-rotate`.

    Attributes:
        seed: of the matrix.
    """

    seed: int = 0


class Rotate(rqat.Transform):
    options: RotateOptions

    @property
    def unties(self) -> bool:
        return True

    def apply(self, model: transformers.PreTrainedModel) -> Mapping[str, torch.Tensor]:
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        turn = orthogonal(embedding.weight.shape[1], self.options.seed).to(embedding.weight.device)

        def reads(linear: torch.nn.Linear, norm: torch.Tensor) -> None:
            linear.weight.copy_((linear.weight.double() * norm.double()) @ turn)

        embedding.weight.copy_(embedding.weight.double() @ turn)
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                reads(linear, layer.input_layernorm.weight)
            for linear in (mlp.gate_proj, mlp.up_proj):
                reads(linear, layer.post_attention_layernorm.weight)
            for linear in (attention.o_proj, mlp.down_proj):
                linear.weight.copy_(turn.T @ linear.weight.double())
                if linear.bias is not None:
                    linear.bias.copy_(linear.bias.double() @ turn)
            layer.input_layernorm.weight.fill_(1)
            layer.post_attention_layernorm.weight.fill_(1)
        reads(head, model.model.norm.weight)
        model.model.norm.weight.fill_(1)
        return {}


class Int8Activations(rqat.Transform):
    """Leaves how many layers it hooked as its state, so that a test can see that the state comes back."""

    def apply(self, model: transformers.PreTrainedModel) -> Mapping[str, torch.Tensor]:
        import torch

        return {"layers": torch.tensor(len(linears(model)))}

    def attach(self, model: transformers.PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
        found = linears(model)
        if len(found) != int(state["layers"]):
            raise rqat.ModelError(f"{len(found)} linear layers, and {int(state['layers'])} when it was made.")
        for linear in found:
            linear.register_forward_pre_hook(lambda module, given: (int8(given[0]), *given[1:]))


def linears(model: transformers.PreTrainedModel) -> list[torch.nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith("_proj")]


def int8(x: torch.Tensor) -> torch.Tensor:
    """`x (..., I)` rounded to 255 steps between minus and plus the largest value of each token; gradients pass."""
    scale = x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
    return x + ((x / scale).round() * scale - x).detach()


def orthogonal(size: int, seed: int) -> torch.Tensor:
    """A random Hadamard matrix in float64 (signs times Sylvester's); where it must be, blocks of them."""
    import torch

    block = size & -size
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(0, 2, (size,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.block_diag(*[matrix / block**0.5] * (size // block)) * signs[:, None]


@rqat.hookimpl
def register_transforms(register: rqat.hookspecs.RegisterTransform) -> None:
    register(
        "acme-rotate",
        options=RotateOptions,
        load=":Rotate",
        summary="turns the residual stream by a random Hadamard matrix",
        paper="2404.00456",
    )
    register(
        "acme-int8", load=":Int8Activations", summary="activations in 8 bits, one scale for each token", hooks=True
    )
