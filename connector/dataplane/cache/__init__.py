"""Governed streams kept on disk, so that a later read of the same rows decodes nothing."""
