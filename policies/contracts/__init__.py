"""An agreement compiled to a data contract: columns, masks, limits."""
