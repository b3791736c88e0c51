"""What is measured, a file per operation; each has `OPS`, what it covers, and `jobs()`."""
