"""Run what `rqat quantize` wrote on packed weights; run by tests/test_docs.py."""

import sys

import rqat
from rqat.generation.engine import Engine

model, tokenizer = rqat.load_packed(sys.argv[1])
prompts = [f"Mia starts with {figs} figs. A friend takes 3. How many figs are there at the end?\n" for figs in (20, 9)]
engine = Engine(model)
for tokens in engine.write(tokenizer(prompts)["input_ids"], 40, ends=frozenset({tokenizer.eos_token_id})):
    print(tokenizer.decode(tokens))
