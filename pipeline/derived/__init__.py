"""Datasets, and exports, that are made of finished datasets."""
