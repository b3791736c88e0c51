"""The calibrate stage; `run` does its work."""
