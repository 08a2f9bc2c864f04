"""What people look at: read-only views of the databases and of this machine. It prints nothing."""
