"""Builders, which list the examples of data sets and load their files."""
