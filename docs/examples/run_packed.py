"""Run what `rqat quantize` wrote on packed weights; run by tests/test_docs.py."""

import sys

import rqat
from rqat.generation.complete import complete_rows
from rqat.generation.engine import Engine

model, tokenizer = rqat.load_packed(sys.argv[1])
problem = "Mia starts with {} figs. A friend takes 3. How many figs are there at the end?\n"
rows: list[rqat.Row] = [{"prompt": problem.format(figs)} for figs in (20, 9)]
for [completion] in complete_rows(model, tokenizer, rows, max_new_tokens=40, writer=Engine(model)):
    print(completion.text)
