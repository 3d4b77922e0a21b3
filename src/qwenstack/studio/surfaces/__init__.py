"""API surfaces: one module per vendor wire format, translation only."""
