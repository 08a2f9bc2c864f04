"""The LLM judge: its prompt, its client, and the check of its answers."""
