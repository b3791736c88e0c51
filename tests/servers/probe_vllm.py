"""Runs in vLLM's environment; see `table.py` for what it is given and what it answers."""

import gc
import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams

MOST = 512


def probe(path: str, prompts: list) -> dict:
    llm = None
    try:
        llm = LLM(path, max_model_len=128, enforce_eager=True, max_logprobs=MOST, disable_log_stats=True)
        most = min(MOST, json.loads((Path(path) / "config.json").read_text())["vocab_size"])
        once = SamplingParams(temperature=0, max_tokens=1, logprobs=most)
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        answers = llm.generate(inputs, once, use_tqdm=False)
        found = [{token: each.logprob for token, each in one.outputs[0].logprobs[0].items()} for one in answers]
        text = llm.generate(inputs[:1], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)[0].outputs[0].text
    except Exception as error:
        causes = [error]
        while causes[-1].__cause__ or causes[-1].__context__:
            causes.append(causes[-1].__cause__ or causes[-1].__context__)
        return {"loads": False, "words": " ".join(str(causes[-1]).split())[:300]}
    finally:
        del llm
        gc.collect()
    return {"loads": True, "logprobs": found, "text": text}


if __name__ == "__main__":
    prompts = json.loads(Path(sys.argv[1]).read_text())
    print("READY", flush=True)
    for folder in sys.argv[2:]:
        print("RESULT", json.dumps(probe(folder, prompts)), flush=True)
