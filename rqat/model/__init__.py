"""Models on disk and in memory: loading, checkpoints between stages, and the walk that quantizes block by block."""
