"""Learning from labelled volumes."""
