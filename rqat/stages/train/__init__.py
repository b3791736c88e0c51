"""The train stage; `run` does its work."""
