"""Evaluation: batched generation, answer equality, lm-evaluation-harness, intervals and paired tests."""
