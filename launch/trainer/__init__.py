"""The training loop around the DeepSpeed engine."""
