"""Folders of sandboxes whose files are objects in an S3 bucket (docs/adr/0015)."""
