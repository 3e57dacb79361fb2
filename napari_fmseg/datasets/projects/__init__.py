"""The project store: cases in a folder, transactions, a locked split."""
