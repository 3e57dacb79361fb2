"""Three linked planes with a crosshair, window presets, opacity of a class, and keys from structure to structure."""
