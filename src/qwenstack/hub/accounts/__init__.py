"""Who uses the hub and what they may: accounts, organisations, tokens, rights."""
