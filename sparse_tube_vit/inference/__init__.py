"""Inference: a loaded model, and what it computes of files."""
