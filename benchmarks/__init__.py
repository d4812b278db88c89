"""Speed, measured: each module prints a small table; `python -m benchmarks.train_step`."""
