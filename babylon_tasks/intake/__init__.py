"""Stage 1: what is due."""
