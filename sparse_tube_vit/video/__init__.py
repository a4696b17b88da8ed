"""Decoding, sampling and transcoding of clips and images with PyAV."""
