"""Connectors: how Gapwatch reads and writes each kind of store."""
