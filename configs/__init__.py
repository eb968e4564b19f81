"""Shipped YAML configurations, the loader that turns them into typed models, and the `smollm2` command."""
