"""The search index, and what each viewer sees of it."""
