"""What is known of labels that are corrected: undo steps, corrected slices, the model's answer, finished classes."""
