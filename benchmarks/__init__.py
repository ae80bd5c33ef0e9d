"""Benchmarks: contenders measured alternately in one run, judged by ratios. `python -m benchmarks --help`."""
