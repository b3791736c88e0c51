"""Everything that writes completions, in one room: evaluation, gate, rollouts, traces and `rqat generate` ask here.

prompts.py              rows -> tokens: the one tokenization of prompts and completions
sampling.py             how tokens are chosen, what ends a completion; a checkpoint's own settings are hidden
writer.py               `Writer`: tokens of prompts -> new tokens, with log-probabilities where asked for
transformers_writer.py  a writer: the model's own `generate`
engine.py               a writer, many times faster: rows that come and go, a piece of work ahead of the host
steps.py, decoder.py    what of it happens on the device: rows, tokens and ends; a model as few operations per token
backend.py              which of them writes with a model, and how an exported model is opened for it
complete.py             prompts -> `rqat.Completion`, batch by batch
loops.py                whether a completion goes round in circles
"""
