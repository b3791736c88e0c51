"""A sweep: one recipe in many cells, each with other values of some keys; steps that cells have in common run once.

cells.py         the file -> cells, each with a plan and the fingerprints of its steps
shared.py        which steps are finished in any cell, and how one takes them from another
executors.py     what runs a cell: a process on this machine, or a job of a cluster through submitit
controller.py    which cell runs when, and which is stopped early
results.py       figures of all cells: table, sweep.csv, sweep.html

runs/<name>/
  cells/lr=1e-05/    a run folder like any other
  logs/lr=1e-05.log  what its process printed
  stopped.json       cells that were stopped early, and why
  sweep.csv  sweep.html
"""
