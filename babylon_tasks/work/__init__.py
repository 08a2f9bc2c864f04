"""How any stage works: the context, leases while it works, what failures do."""
