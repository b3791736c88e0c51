"""Runs in llama.cpp's environment: log-probabilities after prompts, as JSON on the last line.

    python probe_llama.py PROMPTS.json FILE.gguf...

PROMPTS.json is a list of prompts, texts or lists of token ids. For each file: {"loads": true, "logprobs": [...]}, a
mapping of token to log-probability for each prompt, or {"loads": false, "words": "..."}.
"""

import json
import sys

import xllamacpp

MOST = 512
"""Tokens whose probability is asked for; more than the small models have, less than real ones."""


def probe(path: str, prompts: list) -> dict:
    params = xllamacpp.CommonParams()
    params.model.path = path
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
    return {"loads": True, "logprobs": found}


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        asked = json.load(file)
    print(json.dumps([probe(path, asked) for path in sys.argv[2:]]))
