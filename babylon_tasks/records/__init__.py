"""What flows through the pipeline: windows, traces, scores, steps, versions. No I/O."""
