"""Readers of document corpora: one file a format."""
