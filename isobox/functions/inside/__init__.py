"""What `isobox` is inside a container; `bundle.py` copies it there under other names, nobody imports it here."""
