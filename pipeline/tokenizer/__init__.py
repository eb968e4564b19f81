"""Training, loading and running the tokenizer."""
