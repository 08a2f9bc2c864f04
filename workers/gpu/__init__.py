"""A worker's half of a GPU: which one, its lock, and the trainer process on it."""
