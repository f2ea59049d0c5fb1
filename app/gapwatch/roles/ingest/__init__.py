"""Role ``ingest``: raw topics → canonical sections and control records on ``gapwatch.events``."""
