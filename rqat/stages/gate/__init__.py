"""The gate stage; `run` does its work."""
