"""Inference behind one interface."""
