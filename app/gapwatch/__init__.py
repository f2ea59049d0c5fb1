"""Gapwatch: a change-data-capture consistency monitor."""

__version__ = "0.1.0"
