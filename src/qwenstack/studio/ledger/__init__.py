"""The ledger: double entry, append-only, durable before a response's last byte goes out."""
