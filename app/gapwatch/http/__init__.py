"""The HTTP side: probes, metrics, the API under ``/api/v1``, its OpenAPI document, and the page at ``/``."""
