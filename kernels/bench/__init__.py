"""The bench of rqat's kernels: `python kernels/bench/run.py --out DIR`."""
