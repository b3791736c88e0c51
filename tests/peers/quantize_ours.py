"""rqat's quantizers, block by block as the stage `quantize` runs them: see measured.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from measured import job, measured, tell

from rqat.keys import ModelKeys
from rqat.model.blocks import quantize_model
from rqat.model.finished import write_finished
from rqat.model.load import open_model
from rqat.model.memory import keep_freed
from rqat.model.repeatable import repeatable_attention
from rqat.registry import Registry
from rqat.scheme import Scheme
from rqat.stages.quantize.run import batches_of

given = job()
device = given["device"]
keep_freed()
torch.set_grad_enabled(False)
registry = Registry.discover()
card = registry.card("quantizer", given["method"])
quantizer = registry.make(card, registry.options(card, given["settings"]))
weights, tokenizer = open_model(ModelKeys(path=given["model"], dtype="float32"), device=device, offline=True)
tokens = torch.tensor(given["tokens"])
batches = batches_of(tokens, torch.ones_like(tokens), device) if quantizer.needs else []
scheme, folder = Scheme(bits=given["bits"], group=given["group"]), Path(given["folder"])
kept = folder / "blocks"
kept.mkdir(parents=True)
result: dict[str, Any] = {}
with measured(result, device), repeatable_attention(device):
    layers, _ = quantize_model(weights, batches, quantizer, scheme, resume_dir=kept)
write_finished(folder, weights, tokenizer, layers, kept)
tell(result)
