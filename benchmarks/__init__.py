"""What is fast, how fast, and against whom: `python -m benchmarks`. Results: docs/benchmarks.md."""
