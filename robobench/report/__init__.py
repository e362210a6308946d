"""Rows as tables, pages and figures for people. Rounding and percent signs happen here only."""

from robobench.report.board import board, board_text, board_titles
from robobench.report.formats import FORMATS, leaderboard, markdown, robustbench
from robobench.report.latex import latex_boards, latex_escape, latex_matrices
from robobench.report.matrix import blocks, budgets, costs, matrix, show, stacked
from robobench.report.text import BOARD, MISSING, NETWORK, groups, is_reduced, label, percent, point, seconds, text

__all__ = [
    "BOARD",
    "FORMATS",
    "MISSING",
    "NETWORK",
    "blocks",
    "board",
    "board_text",
    "board_titles",
    "budgets",
    "costs",
    "groups",
    "is_reduced",
    "label",
    "latex_boards",
    "latex_escape",
    "latex_matrices",
    "leaderboard",
    "markdown",
    "matrix",
    "percent",
    "point",
    "robustbench",
    "seconds",
    "show",
    "stacked",
    "text",
]
