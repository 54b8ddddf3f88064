"""Datasets as records: what is in them, how they are written, read, augmented and batched."""
