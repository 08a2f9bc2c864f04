"""All SQL: the only code that knows tables and columns."""
