"""What isobox's speed is, beside its peers: `make bench`."""
