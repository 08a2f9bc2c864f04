"""The game: an hour that agents play, and what each decision in it is worth on average."""
