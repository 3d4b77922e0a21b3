"""Telling an operator's own systems that a budget's alert line was crossed."""
