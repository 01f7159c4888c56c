"""How flat trained networks are."""
