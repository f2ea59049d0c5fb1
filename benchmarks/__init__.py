"""Benchmarks: ratios inside one run on one machine, never absolute times."""
