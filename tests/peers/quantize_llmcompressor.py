"""llm-compressor's GPTQ, with the order of columns and the observer that the job asks for: see measured.py.

It takes the device by itself: a GPU where it sees one, a block at a time.
"""

from __future__ import annotations

from typing import Any

import datasets
import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from measured import job, measured, tell

given = job()
model = transformers.AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
weights = QuantizationArgs(
    num_bits=given["bits"],
    type="int",
    symmetric=False,
    strategy="group",
    group_size=given["group"],
    **given["settings"],
)
recipe = GPTQModifier(
    config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, ignore=["lm_head"]
)
rows = datasets.Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in given["tokens"]])
result: dict[str, Any] = {}
with measured(result, given["device"]):
    oneshot(
        model=model,
        dataset=rows,
        recipe=recipe,
        max_seq_length=len(given["tokens"][0]),
        num_calibration_samples=len(given["tokens"]),
    )
model.save_pretrained(given["folder"], save_compressed=True)
transformers.AutoTokenizer.from_pretrained(given["model"]).save_pretrained(given["folder"])
tell(result)
