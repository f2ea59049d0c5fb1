"""Frozen data: what the parts of Gapwatch hand to each other."""
