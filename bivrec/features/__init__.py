"""Frozen encoders, feature files, whitening, and the feature contract between a tower and a Domain."""
