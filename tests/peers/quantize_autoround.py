"""auto-round, in float32 throughout, where it would take 16 bits: see measured.py.

On a GPU it compiles what it runs most, as is its default; on a CPU it does not, which would need a compiler there.

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
# On a GPU its first one and torch.compile, as it chooses by itself.
placed = {"device_map": "cpu", "enable_torch_compile": False} if given["device"] == "cpu" else {"device_map": 0}
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
    amp=False,
    **placed | given["settings"],
)
result: dict[str, Any] = {}
with measured(result, given["device"]):
    rounder.quantize()
rounder.save_quantized(given["folder"], format="fake")
tell(result)
