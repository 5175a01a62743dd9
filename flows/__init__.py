"""What runs, in which order: one flow a file, no logic."""
