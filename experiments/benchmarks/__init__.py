"""What the methods cost."""
