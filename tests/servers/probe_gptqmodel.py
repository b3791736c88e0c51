"""Runs in gptqmodel's environment; see `table.py` for what it is given and what it answers."""

import json
import sys
from pathlib import Path

import torch
from gptqmodel import GPTQModel


def probe(path: str, prompts: list) -> dict:
    try:
        model = GPTQModel.load(path, device="cpu", dtype=torch.bfloat16)
        with torch.no_grad():
            logits = [model.model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1) for ids in prompts]
            written = model.generate(torch.tensor(prompts[:1]), max_new_tokens=16, do_sample=False)
        text = model.tokenizer.decode(written[0, len(prompts[0]) :])
    except Exception as error:
        return {"loads": False, "words": " ".join(str(error).split())[:300]}
    return {"loads": True, "logprobs": [dict(enumerate(row.tolist())) for row in logits], "text": text}


if __name__ == "__main__":
    prompts = json.loads(Path(sys.argv[1]).read_text())
    print("READY", flush=True)
    for folder in sys.argv[2:]:
        print("RESULT", json.dumps(probe(folder, prompts)), flush=True)
