"""The commercial layer: an API over open weights with keys, prices, limits and a ledger."""
