"""GPTQ's column loop. `reference.py` is the definition, `blocked.py` what callers get."""

from .blocked import gptq_block
from .reference import Refit, gptq_loop

__all__ = ["Refit", "gptq_block", "gptq_loop"]
