"""Tensor operations of quantized forward and backward passes; knows nothing of rqat.

One folder per operation: `reference.py` is its definition in plain torch, `__init__.py` the entry that callers use.
"""
