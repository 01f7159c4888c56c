"""Studies: methods compared on one task, each tuned with the same budget."""
