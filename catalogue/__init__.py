"""The catalogue: finds datasets over many connectors, and keeps the register of the data space's members."""
