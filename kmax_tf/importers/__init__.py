"""Other people's checkpoints: read them, translate their names, fill our variables."""
