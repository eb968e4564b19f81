"""Attention kernels: one file a kernel, one table that selects."""
