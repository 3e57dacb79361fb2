"""Many volumes: which are done already, how they overlap, what failed and what its remedy is."""
