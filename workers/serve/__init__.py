"""The OpenAI-compatible endpoint: `python -m workers.serve`."""
