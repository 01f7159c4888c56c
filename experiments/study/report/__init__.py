"""What finished studies say, each and together."""
