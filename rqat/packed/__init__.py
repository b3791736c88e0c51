"""Exported checkpoints on packed weights: `load.py` opens them, `engine.py` writes with them."""
