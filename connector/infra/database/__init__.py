"""How a service opens and migrates its database."""
