"""Model cards, weights, settings, conversion, archives and provenance."""
