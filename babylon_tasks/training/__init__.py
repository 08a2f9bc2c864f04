"""Stage 3: what is learned."""
