"""The example notebook, cell by cell, without a kernel."""

import ast
import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first_steps.ipynb"


def run_cell(source, names):
    """Run a cell; return the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last is not None else None


def test_example_notebook_runs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")  # none are committed
    names: dict[str, object] = {}
    table, shown, distance = (run_cell("".join(c["source"]), names) for c in cells if c["cell_type"] == "code")
    assert set(table["defense"]) == {"standard", "at"}
    html = shown._repr_html_()
    assert html.count("<table") >= 3 and "<svg" in html and "white-box accuracy, %" in html
    assert "worst case over fgsm" in repr(shown)
    assert distance <= 0.1 + 1e-6
