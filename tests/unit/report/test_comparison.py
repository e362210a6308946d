from rich.console import Console

from robobench.report.comparison import print_comparison
from tests.helpers.records import evaluation_record as record


def test_comparison_shows_difference_and_p_value():
    """9 images that only one model gets right against 1: p = 2 (1 + 10) / 2^10."""
    robust = {"at": "1" * 9 + "0" * 11, "macd": "0" * 9 + "1" + "0" * 10}
    records = [record(defense=name, training=name, robust=bits, clean="1" * 20) for name, bits in robust.items()]
    console = Console(width=200)
    with console.capture() as captured:
        print_comparison(records, console, "at")
    text = captured.get()
    assert "-40.0 (0.021)" in text and "This compares trained models" in text
