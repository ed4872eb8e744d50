"""Many requests in a file, answered one after the other, and resumed where it ended."""
