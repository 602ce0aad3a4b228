"""How others learn of changes: webhooks, the catalogue, long polls."""
