"""TubeViT: tubes, positions, encoder, heads, losses and FLOPs."""
