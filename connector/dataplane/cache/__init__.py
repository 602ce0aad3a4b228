"""Cache of governed streams on disk: a later read of the same rows decodes nothing."""
