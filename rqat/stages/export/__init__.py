"""The export stage; `run` does its work."""
