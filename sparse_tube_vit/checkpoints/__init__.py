"""Checkpoints and releases: saved, found and read; and what models start from."""
