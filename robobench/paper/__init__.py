"""The MACD paper beside robobench: its published numbers, the runs that answer them, and pictures.

The data stand in `leaderboards/published/macd-paper/`: `tables.json` has every printed number, `runs.json` says
which defense, attack and settings answer it.
"""
