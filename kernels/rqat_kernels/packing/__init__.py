"""Bit packing of codes and zero points for checkpoint files. `reference.py` is the definition."""

from .reference import AWQ_ORDER, pack, pack_awq, unpack, unpack_awq, words_for

__all__ = ["AWQ_ORDER", "pack", "pack_awq", "unpack", "unpack_awq", "words_for"]
