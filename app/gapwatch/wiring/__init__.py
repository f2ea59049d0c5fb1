"""Builds every object from the settings. No logic: the only place that knows connectors, ledger, Kafka and HTTP at once.

Whoever needs one module imports that one: the whole service takes two seconds to import.
"""
