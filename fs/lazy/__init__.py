"""Images that are not here: served through FUSE, each part fetched when it is first touched."""
