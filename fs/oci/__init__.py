"""OCI images: references, registries, archives, layers."""
