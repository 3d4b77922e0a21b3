"""Batch: files of requests that run when there is room, at the batch price."""
