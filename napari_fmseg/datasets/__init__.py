"""Cases on disk: nnU-Net layout, projects with a locked split, synthetic phantoms. No torch."""
