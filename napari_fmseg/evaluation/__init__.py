"""Metrics, lesions, volumes, tables of results, benchmark."""
