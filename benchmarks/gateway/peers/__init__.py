"""One module a peer: how to install, start, stop and question it."""
