"""The server's edge: how many connections there are, and how much a stranger may send before a key is asked for."""
