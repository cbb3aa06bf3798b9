"""Agents that really run."""
