"""Convex problems on which flatness fails."""
