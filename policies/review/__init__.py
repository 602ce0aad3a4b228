"""Reviews a policy before and after signing: lint, explanation, differences, enforceability."""
