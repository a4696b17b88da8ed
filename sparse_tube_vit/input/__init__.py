"""From encoded files to batches of uint8 clips, on the host. Imports no jax itself."""
