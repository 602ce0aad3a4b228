"""From SQL over several owners to a plan: fragments for the owners and a residual query. Pure."""
