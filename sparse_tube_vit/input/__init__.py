"""Input on the host: examples, augmentation, batches. No module imports jax itself."""
