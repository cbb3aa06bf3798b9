"""An exec's log on its way to a client."""
