"""Load what `rqat quantize` wrote with plain transformers; run by tests/test_docs.py."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
prompt = tokenizer(
    "Mia starts with 20 figs. A friend takes 3. How many figs are there at the end?\n", return_tensors="pt"
)
output = model.generate(input_ids=prompt.input_ids, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(output[0]))
