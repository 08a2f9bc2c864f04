"""What flows: windows, traces, scores, steps, versions; plain records, no I/O."""
