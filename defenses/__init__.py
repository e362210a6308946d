"""Defenses: one training method per file."""
