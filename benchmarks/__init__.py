"""Benchmarks: ratios inside one run on one machine, never absolute times."""

import os

os.environ.setdefault("GAPWATCH_EMBEDDED_JAVA", "full")  # the brokers are part of what is measured
