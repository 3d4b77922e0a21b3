"""What exists, on which layer, and under which terms."""
