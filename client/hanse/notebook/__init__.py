"""What prompts and notebooks show and complete."""
