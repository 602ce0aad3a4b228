"""The help site: its built pages, served at `/help` by the connector and by the command `hanse docs`."""
