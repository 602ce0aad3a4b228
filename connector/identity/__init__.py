"""Who is calling, and proving who we are. The rest of the code sees `authenticate` and `mint` (identity.service)."""
