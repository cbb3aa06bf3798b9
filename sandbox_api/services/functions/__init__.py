"""Functions: calls that are kept until they are done, containers that do them."""
