"""Runs in an environment of transformers; see `table.py` for what it is given and what it answers."""

import json
import sys
from pathlib import Path

import torch
import transformers


def probe(path: str, prompts: list) -> dict:
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
        with torch.no_grad():
            logits = [model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1) for ids in prompts]
            written = model.generate(torch.tensor(prompts[:1]), max_new_tokens=16, do_sample=False)
    except Exception as error:
        return {"loads": False, "words": " ".join(str(error).split())[:300]}
    text = transformers.AutoTokenizer.from_pretrained(path).decode(written[0, len(prompts[0]) :])
    return {"loads": True, "logprobs": [dict(enumerate(row.tolist())) for row in logits], "text": text}


if __name__ == "__main__":
    prompts = json.loads(Path(sys.argv[1]).read_text())
    print("READY", flush=True)
    for folder in sys.argv[2:]:
        print("RESULT", json.dumps(probe(folder, prompts)), flush=True)
