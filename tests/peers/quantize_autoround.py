"""auto-round, in float32 throughout, where it would take 16 bits: see measured.py.

On a GPU it compiles what it runs 200 times, as is its default; on a CPU that would need a compiler.

It saves the weights that its codes mean (its format `fake`), since that of its files which GPTQ's readers share cannot
hold every zero point.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from auto_round import AutoRound
from measured import job, measured, tell

given = job()
on_gpu = given["device"] != "cpu"
settings = {} if on_gpu else {"enable_torch_compile": False}
model = transformers.AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(given["model"])
rows = torch.tensor(given["tokens"])
rounder = AutoRound(
    model,
    tokenizer,
    scheme={"bits": given["bits"], "group_size": given["group"], "sym": False, "data_type": "int"},
    dataset=list(rows.split(given["batch"])),
    nsamples=len(rows),
    seqlen=rows.shape[1],
    batch_size=given["batch"],
    device_map=given["device"],
    amp=False,
    **settings | given["settings"],
)
result: dict[str, Any] = {}
with measured(result, given["device"]):
    rounder.quantize()
rounder.save_quantized(given["folder"], format="fake")
tell(result)
