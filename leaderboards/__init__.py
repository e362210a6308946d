"""Measured and published rows; data only."""
