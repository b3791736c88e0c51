"""Bit packing of codes: words of checkpoint files, and planes that kernels read.

`reference.py` is the definition of the words of files, `planes.py` that of the planes, `formats.py` goes from one to
the other; `dequantize.py` makes a dense matrix of planes.
"""

from .dequantize import dequantize_packed, dequantize_reference
from .formats import from_awq, from_compressed_tensors, from_gptq, to_awq, to_compressed_tensors, to_gptq
from .planes import PackedWeight
from .reference import AWQ_ORDER, pack, pack_awq, unpack, unpack_awq, words_for

__all__ = [
    "AWQ_ORDER",
    "PackedWeight",
    "dequantize_packed",
    "dequantize_reference",
    "from_awq",
    "from_compressed_tensors",
    "from_gptq",
    "pack",
    "pack_awq",
    "to_awq",
    "to_compressed_tensors",
    "to_gptq",
    "unpack",
    "unpack_awq",
    "words_for",
]
