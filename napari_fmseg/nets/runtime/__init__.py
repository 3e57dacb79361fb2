"""How a network runs: device, precision, fast CPU forms, low-memory forms."""
