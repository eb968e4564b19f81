"""SmolLM2 in plain PyTorch, and its exact translation from and to Hugging Face weights."""
