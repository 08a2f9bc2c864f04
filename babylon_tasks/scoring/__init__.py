"""Stage 2: scores each due window's trajectories."""
