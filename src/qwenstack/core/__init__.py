"""Types and rules with no I/O."""
