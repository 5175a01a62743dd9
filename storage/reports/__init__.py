"""The report of an evaluation: one HTML file that opens without a network, and its numbers as JSON and CSV."""
