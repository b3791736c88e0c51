"""Runs in MLX's environment; see `table.py` for what it is given and what it answers."""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm import generate, load


def probe(path: str, prompts: list) -> dict:
    try:
        model, tokenizer = load(path)
        found = []
        for ids in prompts:
            logits = model(mx.array([ids]))[0, -1].astype(mx.float32)
            found.append(dict(enumerate((logits - mx.logsumexp(logits)).tolist())))
        text = generate(model, tokenizer, prompt=prompts[0], max_tokens=16)
    except Exception as error:
        return {"loads": False, "words": " ".join(str(error).split())[:300]}
    return {"loads": True, "logprobs": found, "text": text}


if __name__ == "__main__":
    prompts = json.loads(Path(sys.argv[1]).read_text())
    print("READY", flush=True)
    for folder in sys.argv[2:]:
        print("RESULT", json.dumps(probe(folder, prompts)), flush=True)
