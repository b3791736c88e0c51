"""One folder per stage: `run.run(job, step)` does a step's work in `job.workdir(step)` and returns facts about it."""
