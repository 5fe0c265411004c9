"""What bytes mean: one file (or unit) per format. Never executes anything."""
