"""One machine without servers of its own: PostgreSQL, Redis and all roles below one process."""
