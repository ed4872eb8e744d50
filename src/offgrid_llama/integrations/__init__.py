"""An Engine in the frameworks of others, a file or a folder for each. Each needs its framework, which is an extra."""
