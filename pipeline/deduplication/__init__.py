"""Deduplication and decontamination: passes over the input that decide which documents the last pass leaves out."""
