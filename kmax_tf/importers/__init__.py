"""Imports checkpoints of other codebases: reads them, renames, and fills our variables."""
