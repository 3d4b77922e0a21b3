"""The hub's bytes: by content, cut into chunks, each chunk kept once in a pack."""
