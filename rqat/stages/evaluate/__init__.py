"""The evaluate stage; `run` does its work."""
