"""Renderers: each knows the document and nothing else."""
