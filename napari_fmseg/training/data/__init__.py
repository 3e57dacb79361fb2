"""Training samples: reading, caching, sampling, augmentation."""
