"""Exported checkpoints on packed weights: `load.py` opens them, `formats.py` knows how they are stored."""
