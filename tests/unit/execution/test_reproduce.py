from robobench.execution.reproduce import ReproducedCell, sample_cells
from robobench.results.statistics import PerImageOutcomes, wilson_interval


def test_sample_has_different_attacks_and_fastest_first():
    cells = [{"key": str(n), "attack": "pgd" if n < 9 else "autoattack", "seconds": 20 - n} for n in range(10)]
    for seed in range(5):
        assert [c["attack"] for c in sample_cells(cells, 2, seed)] == ["autoattack", "pgd"]
        assert [c["seconds"] for c in sample_cells(cells, 0, seed)] == sorted(c["seconds"] for c in cells)
    assert len({sample_cells(cells, 1, seed)[0]["key"] for seed in range(5)}) > 1


def test_cell_is_reproduced_inside_recorded_interval():
    def outcomes(count):
        return PerImageOutcomes.parse("1" * count + "0" * (100 - count))

    low, high = wilson_interval(30, 100)  # 21.9 and 39.6 %
    counts = (21, 22, 39, 40)
    cells = [ReproducedCell({}, (outcomes(60), outcomes(60)), (outcomes(30), outcomes(n))) for n in counts]
    assert [cell.reproduced for cell in cells] == [low <= n / 100 <= high for n in counts] == [False, True, True, False]
