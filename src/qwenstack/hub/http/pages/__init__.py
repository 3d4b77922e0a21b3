"""The hub's pages: rendered here, readable without a script, with nothing from elsewhere."""
