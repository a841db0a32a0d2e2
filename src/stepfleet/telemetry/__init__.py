"""Metrics of a worker for Prometheus, and its health over HTTP."""
