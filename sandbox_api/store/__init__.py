"""State, in SQLite."""
