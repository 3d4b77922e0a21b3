"""Gatherers: each turns what one place knows into evidence. Here alone a dossier does I/O."""
