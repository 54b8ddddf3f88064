"""Imports checkpoints of other code bases: reads them, renames, and fills our variables."""
