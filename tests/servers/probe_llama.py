"""Runs in llama.cpp's environment; see `table.py` for what it is given and what it answers."""

import json
import sys
from pathlib import Path

import xllamacpp

MOST = 512
"""Tokens whose probability is asked for: as many as the small models have, fewer than real ones."""


def probe(path: str, prompts: list) -> dict:
    params = xllamacpp.CommonParams()
    params.model.path = str(next(Path(path).glob("*.gguf")))
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 512, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    try:
        server = xllamacpp.Server(params)
    except Exception as error:
        return {"loads": False, "words": " ".join(str(error).split())[:300]}
    found = []
    for prompt in prompts:
        asked = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": MOST, "cache_prompt": False}
        answer = server.handle_completions(asked)
        if "choices" not in answer:
            return {"loads": False, "words": json.dumps(answer)[:300]}
        told = answer["choices"][0]["logprobs"]  # nothing where the end token is the likeliest
        found.append({each["id"]: each["logprob"] for each in told["content"][0]["top_logprobs"]} if told else {})
    text = server.handle_completions({"prompt": prompts[0], "n_predict": 16, "temperature": 0})["choices"][0]["text"]
    return {"loads": True, "logprobs": found, "text": text}


if __name__ == "__main__":
    prompts = json.loads(Path(sys.argv[1]).read_text())
    print("READY", flush=True)
    for folder in sys.argv[2:]:
        print("RESULT", json.dumps(probe(folder, prompts)), flush=True)
