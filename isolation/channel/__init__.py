"""The channel to PID 1: frames.py and streams.py without I/O, link.py with."""
