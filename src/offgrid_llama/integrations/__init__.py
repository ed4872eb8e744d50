"""What fits an Engine into the frameworks of others, a file for each. Each needs its framework, which is an extra."""
