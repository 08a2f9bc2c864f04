"""The Celery edge: tasks, messages, the life of a process."""
