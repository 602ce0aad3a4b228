"""How a worker inspects files and foreign Arrow before anything trusts them."""
