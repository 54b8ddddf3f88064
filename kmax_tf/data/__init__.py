"""Datasets as records: their schema, and how they are written, read, augmented and batched."""
