"""GPTQModel's GPTQ: see measured.py.

It saves its format of version 2: in version 1 a zero point of 0 is written as one less than that, which readers take
for different things.
"""

from __future__ import annotations

from typing import Any

import gptqmodel
import torch
from measured import job, measured, tell

given = job()
config = gptqmodel.QuantizeConfig(
    bits=given["bits"],
    group_size=given["group"],
    sym=False,
    device=given["device"],
    format="gptq_v2",
    **given["settings"],
)
model = gptqmodel.GPTQModel.load(given["model"], config, dtype=torch.float32)
rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in given["tokens"]]
result: dict[str, Any] = {}
with measured(result, given["device"]):
    model.quantize(rows, batch_size=given["batch"])
model.save(given["folder"])
tell(result)
