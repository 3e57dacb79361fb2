"""The Correct dock: from a model's answer to a finished mask."""
