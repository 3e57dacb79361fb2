"""Autosave and restore of painted labels."""
