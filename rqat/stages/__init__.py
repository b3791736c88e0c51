"""One file per stage: `run(job, step)` does the work of a step in `job.workdir(step)` and returns facts about it."""
