"""Trained detectors as files for other programs: written, checked against PyTorch, and read again."""
