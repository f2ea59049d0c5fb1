"""The running services."""
