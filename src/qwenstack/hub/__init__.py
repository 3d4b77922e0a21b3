"""The open-weight layer: a registry over the Hugging Face wire API, its store, and lineage."""
