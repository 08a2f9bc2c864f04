"""The endpoint's edge: HTTP requests become questions, and answers become responses."""
