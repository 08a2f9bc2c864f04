"""A market of our own: what the demo, tests and experiments play in."""
