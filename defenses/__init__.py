"""Defenses: one way of training a file."""
