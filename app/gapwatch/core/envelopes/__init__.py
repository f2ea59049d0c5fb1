"""Decoders of raw records, one per source shape."""
