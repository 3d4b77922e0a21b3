"""Who may run now: rate limits over sliding windows, and a fair queue before an engine's slots."""
