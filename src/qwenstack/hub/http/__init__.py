"""The hub on the wire: the Hugging Face HTTP API, a module for each resource."""
