"""The engine of our own: generates with transformers, many requests in one batch."""
