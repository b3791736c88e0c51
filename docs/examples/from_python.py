"""Quantize, train and export from Python; run by tests/test_docs.py."""

import torch

import rqat

quantized = rqat.quantize("builtin:tiny-reasoner", method="gptq", scheme="w2g128", calibration="arith")

pairs = torch.randint(25, 50, (64, 1)), torch.randint(1, 25, (64, 1))
texts = [f"Mia has {a} figs. A friend takes {b}. How many are left?\n{a}-{b}={a - b}" for a, b in torch.hstack(pairs)]
optimizer = quantized.optimizer(lr=2e-4, scale_lr=1e-4)
for start in range(0, len(texts), 4):
    batch = quantized.tokenizer(texts[start : start + 4], padding=True, return_tensors="pt")
    loss = quantized.model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

print(rqat.evaluate(quantized, "arith", limit=16).results["accuracy"])
rqat.save(quantized, "trained")
print(rqat.export(quantized, "served", format="compressed-tensors")["reload"])
