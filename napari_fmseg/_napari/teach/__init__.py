"""The Teach dock."""
