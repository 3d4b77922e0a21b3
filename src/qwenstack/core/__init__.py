"""Types and rules with no I/O, and the one step of it that every room takes (`durable`)."""
