"""Runs in AutoAWQ's environment: `probe_autoawq.py PROMPTS.json FOLDER...`; see autoawq_env.py for what it answers.

For each folder a line `RESULT` with a JSON object: that it loads, the logits after every prompt, and the file beside
the folder with the weights that AutoAWQ makes of its codes; or in whose words it does not.

On a CPU AutoAWQ asks for intel_extension_for_pytorch, whose last release is for torch 2.8. It has a path in plain
torch as well, and takes it where it is told that there is another device.
"""

import json
import sys
from pathlib import Path

import awq.models.base
import torch
from awq import AutoAWQForCausalLM
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file

awq.models.base.get_best_device = lambda: "not the CPU"


def probe(folder: str, prompts: list) -> dict:
    try:
        model = AutoAWQForCausalLM.from_quantized(folder, fuse_layers=False, device_map={"": "cpu"}).model
        weights = {
            name: dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, layer.w_bit, layer.group_size)
            for name, layer in model.named_modules()
            if isinstance(layer, WQLinear_GEMM)
        }
        save_file({name: weight.T.contiguous() for name, weight in weights.items()}, f"{folder}.safetensors")
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0, -1].float().tolist() for ids in prompts]
    except Exception as error:
        return {"loads": False, "words": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {"loads": True, "weights": f"{folder}.safetensors", "logits": logits}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    for given in sys.argv[2:]:
        print("\nRESULT", json.dumps(probe(given, asked)), flush=True)
