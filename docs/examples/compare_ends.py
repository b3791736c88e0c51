"""What a quantized embedding and head cost: bytes, and KL to the model before, in and out of the calibration's domain.

python compare_ends.py MODEL SCHEME CALIBRATION IN_DOMAIN OUT_OF_DOMAIN [ENDS ...]

The three texts are .txt or .jsonl files, gzipped or not; of rows, all texts are joined. ENDS are `none` (16 bits), a
scheme for GPTQ ("w4g64"), or one with `rtn:` in front, for ends that are rounded before GPTQ does the layers.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import rqat

SEQUENCES, TOKENS = 8, 256
"""Of held-out text on which KL is measured."""


def texts_of(path: Path) -> list[str]:
    """The texts of a file; marks of GSM8K's calculator are left out."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    if ".jsonl" not in path.name:
        return text.split("\n\n")
    rows = [json.loads(line) for line in text.splitlines()]
    return [re.sub(r"<<.*?>>", "", "\n".join(str(value) for value in row.values())) for row in rows]


def sequences(path: Path, tokenizer: Any) -> torch.Tensor:
    """The first `(SEQUENCES, TOKENS)` token ids of a file."""
    ids = tokenizer("\n\n".join(texts_of(path)[:2000]), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: SEQUENCES * TOKENS]).view(SEQUENCES, TOKENS)


@torch.no_grad()
def log_probabilities(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """`(TOKENS, V)` of every sequence."""
    return [model(input_ids=row[None].to(model.device)).logits[0].float().log_softmax(-1).cpu() for row in ids]


def kl(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """Mean over positions, in nats."""
    rows = [(p.exp() * (p - q)).sum(-1).mean() for p, q in zip(before, after, strict=True)]
    return float(torch.stack(rows).mean())


def main(path: str, scheme: str, calibration: str, *held_out: str, ends: tuple[str, ...]) -> None:
    """Prints a line for each of `ends`."""
    rows = {"rows": texts_of(Path(calibration))[:2000], "samples": 16, "tokens": 512, "pack": True}
    expected: list[list[torch.Tensor]] = []
    for chosen in ends:
        model: Any = path
        tokenizer: Any = None
        layers: dict[str, Any] = {}
        if chosen.startswith("rtn:"):
            named = {"default": scheme, "lm_head": chosen[4:], "embed_tokens": chosen[4:]}
            rounded = rqat.quantize(path, method="rtn", scheme=named, skip=["model.layers.*"])
            model, tokenizer, layers = rounded.model, rounded.tokenizer, rounded.layers
        named = {"default": scheme}
        if chosen != "none" and not layers:
            named |= {"lm_head": chosen, "embed_tokens": chosen}
        quantized = rqat.quantize(model, tokenizer, method="gptq", scheme=named, calibration=rows)
        if layers:
            quantized = rqat.QuantizedModel(quantized.model, quantized.tokenizer, layers | quantized.layers)
        tests = [sequences(Path(file), quantized.tokenizer) for file in held_out]
        if not expected:
            like: Any = quantized.model
            source = AutoModelForCausalLM.from_pretrained(path, dtype=like.dtype).to(like.device)
            expected = [log_probabilities(source, ids) for ids in tests]
            del source
        with tempfile.TemporaryDirectory() as folder:
            facts = rqat.export(quantized, Path(folder) / "out", "rqat")
        after = [log_probabilities(quantized.model, ids) for ids in tests]
        inside, outside = (kl(p, q) for p, q in zip(expected, after, strict=True))
        size = f"{facts['bytes'] / 1e6:.1f} MB  {facts['bits_per_parameter']:.2f} bits per parameter"
        print(f"{chosen:10}  {size}  KL {inside:.3f} / {outside:.3f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:6], ends=tuple(sys.argv[6:]) or ("none", "w8g64", "rtn:w4g64", "w4g64"))
