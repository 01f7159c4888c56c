"""What is measured of trained networks, and of training itself."""
