"""Pickers of image, model, channels and region."""
