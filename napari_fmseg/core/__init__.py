"""Foundations: volumes, errors, events, resampling, atomic writing, hardware facts."""
