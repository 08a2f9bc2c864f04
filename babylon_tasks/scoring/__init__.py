"""Stage 2: what a window was worth."""
