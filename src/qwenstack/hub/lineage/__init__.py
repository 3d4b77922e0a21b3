"""Whose child a model is, told from its weights: fingerprints, their index, and the comparison."""
