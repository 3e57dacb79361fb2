"""Child processes: segmentation engine and training."""
