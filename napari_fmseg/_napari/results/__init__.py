"""Class table, lesion table, navigation and the 3-D view."""
