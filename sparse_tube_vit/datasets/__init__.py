"""Prepared data sets: builders, preparing, the manifest, reading, class names."""
