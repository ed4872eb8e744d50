"""The APIs that clients speak, one file each: a worker's frames as the responses of that API."""
