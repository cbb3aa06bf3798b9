"""The one seam between the HTTP side and what needs root."""
