# `just check` is what CI runs.

export OMP_NUM_THREADS := env("OMP_NUM_THREADS", "1")

# tests that run side by side, each on one thread
WORKERS := env("WORKERS", "2")

default:
    @just --list

# format, lint, types, tests
check: lint types test docs

format:
    ruff format .
    ruff check --fix .

lint:
    ruff format --check .
    ruff check .

types:
    mypy

# the whole suite; `just quick` leaves out what takes longer than five seconds
test *ARGS:
    pytest -q -n {{WORKERS}} {{ARGS}}

quick *ARGS:
    pytest -q -n {{WORKERS}} -m "not slow and not campaign and not servers and not long" {{ARGS}}

# what the suite leaves out to stay short: tutorials, two machines, runs and processes that are killed
long *ARGS:
    pytest -q -n {{WORKERS}} -m long {{ARGS}}

# interrupts a small run at every point, in every way, and starts it again; prints a table; with fuzz, 20 minutes on two cores
campaign *ARGS:
    pytest -q -s -m campaign tests/campaign {{ARGS}}

# makes files of every kind and reads them: `just fuzz --seed 7`; all of it after `pip install -e '.[fuzz]'`
fuzz *ARGS:
    python -m tests.campaign.fuzz.run {{ARGS}}

# quantizes a real model by rqat and by its peers, in hours: `just peers MODEL --group 64 -o WORK`
peers *ARGS:
    python -m tests.peers.environments
    python -m tests.peers.ptq_vs_peers {{ARGS}}

docs:
    mkdocs build --strict

# the main job, on any machine, in minutes
quickstart:
    rqat qat --recipe quickstart
