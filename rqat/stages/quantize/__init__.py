"""The quantize stage; `run` does its work."""
