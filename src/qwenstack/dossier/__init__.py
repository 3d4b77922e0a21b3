"""Evidence in, reference file out."""
