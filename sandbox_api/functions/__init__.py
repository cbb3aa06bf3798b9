"""Functions in sandboxes: what runs inside (`runner.py`), what it says (`protocol.py`), how many (`scale.py`)."""
