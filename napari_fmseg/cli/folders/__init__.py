"""Commands on many volumes: which of them, and on which machines."""
