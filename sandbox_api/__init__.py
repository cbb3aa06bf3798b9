"""The HTTP side: routes, models, services, store. Reaches the machine through host/ alone."""
