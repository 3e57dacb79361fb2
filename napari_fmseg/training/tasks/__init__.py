"""What each pipeline's stages learn."""
