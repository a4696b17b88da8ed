"""Input on the host: examples, augmentation, batches. Nothing here imports jax."""
