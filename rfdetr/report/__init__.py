"""report.html: one file that says how good a run is, where it fails, and what it was made of."""
