"""gapwatch.yaml: parse and validate everything."""
