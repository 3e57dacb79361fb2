"""Review of a project's cases: one after the other, accepted, corrected or rejected."""
