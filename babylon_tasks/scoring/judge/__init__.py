"""Scores by RULER: what an LLM judge is shown, asked and believed."""
