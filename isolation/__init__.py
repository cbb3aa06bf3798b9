"""Sandboxes on this machine: the runsc driver, PID 1 and its channel, cgroups, logs, and what survives the server."""
