"""The command `isobox`."""
