"""The work of reference on the programs that somebody would otherwise use, beside Gapwatch itself: ``make bench-peers``."""
