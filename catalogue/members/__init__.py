"""Members of the data space and their signed register."""
