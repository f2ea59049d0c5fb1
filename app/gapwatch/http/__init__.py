"""The HTTP edge: API, health, metrics and the page."""
