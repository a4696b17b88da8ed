"""Preparation of data sets, in processes or on Beam, and their verification."""
