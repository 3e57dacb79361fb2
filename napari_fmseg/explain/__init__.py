"""Explanations of a prediction: Seg-Grad-CAM and uncertainty."""
