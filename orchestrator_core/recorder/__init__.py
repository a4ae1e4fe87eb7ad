"""The flight recorder: every input of the core on disk, bounded, and what re-runs it. LO-207."""
