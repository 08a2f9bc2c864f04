"""Stage 5: which version serves."""
