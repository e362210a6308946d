"""The MACD paper: its published numbers, the experiments that reproduce them, and both side by side.

The data are in `leaderboards/published/macd-paper/`: `tables.json` holds every printed number, `runs.json` maps each
to a defense, an attack and settings of robobench.
"""
