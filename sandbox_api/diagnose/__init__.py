"""Failures as a model can read them. Pure."""
