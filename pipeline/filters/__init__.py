"""Document filters: one rule set a file."""
