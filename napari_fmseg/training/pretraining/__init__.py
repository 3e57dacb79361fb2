"""Self-supervised pretraining with Volume Fusion."""
