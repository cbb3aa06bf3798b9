"""Root file systems: base images, imports, EROFS files. Depends on common only."""
