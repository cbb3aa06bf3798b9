"""The gateway: an unprivileged process that all traffic by name passes through. Protocols here do no I/O."""
