"""Every picture: those of a run, its curves, and those that need no run."""
