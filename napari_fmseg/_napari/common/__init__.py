"""Shared widgets, the background job, preferences."""
