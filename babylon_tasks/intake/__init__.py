"""Stage 1: finds due windows and takes the app's requests."""
