"""HTTP and websockets passed on to a program that listens inside a sandbox."""
