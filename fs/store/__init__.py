"""Contents by their digest: cut, compressed, packed, counted, fetched in parts."""
