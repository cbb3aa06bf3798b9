"""Code contexts: interpreters that live in a sandbox between runs, and what they say between the lines."""
