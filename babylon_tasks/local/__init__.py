"""All on one machine: PostgreSQL, Redis and all roles as children of one process."""
