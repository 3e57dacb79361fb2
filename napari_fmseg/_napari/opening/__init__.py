"""Opening of files: drop zone, reader logic, dialogs."""
