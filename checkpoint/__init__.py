"""The checkpoint service: verify, consolidate, export to Hugging Face, prove, and ship runs to MLflow."""
