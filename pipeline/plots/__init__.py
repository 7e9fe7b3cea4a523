"""Every picture: those of a run, and those that need no run."""
