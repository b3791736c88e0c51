"""A transform: folds the scales of norms into the linear layers behind them, so that all layers see plain inputs."""

import rqat

BEHIND = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


class FoldNorms(rqat.Transform):
    def apply(self, model):
        import torch

        with torch.no_grad():
            for block in model.base_model.layers:
                for name, linears in BEHIND.items():
                    norm = block.get_submodule(name)
                    for linear in linears:
                        block.get_submodule(linear).weight.mul_(norm.weight)
                    norm.weight.fill_(1.0)
        return {}  # nothing that `attach` would need: there are no hooks


@rqat.hookimpl
def register_transforms(register: rqat.RegisterTransform) -> None:
    register("my-fold", load=":FoldNorms", summary="fold the scales of norms into the layers behind them")
