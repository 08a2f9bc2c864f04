"""What all stages need for their work: the context, leases, and the handling of failures."""
