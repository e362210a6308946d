"""Trackers of `--track`, one tool a file. Each imports its package when it is opened."""
