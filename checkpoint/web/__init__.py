"""The service's status page, JSON API and metrics."""
