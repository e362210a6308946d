from robobench.report.leaderboard_formats import leaderboard
from tests.helpers.rows import MODELS, make_table_rows


def test_latex_has_paper_layout_and_bold_best():
    threats = (("Linf", 8 / 255), ("Linf", 16 / 255))
    text = leaderboard(make_table_rows({**MODELS, "50%_{x}": 0.1}, ("fgsm", "pgd"), threats), "latex")
    assert r"\multicolumn{2}{c}{FGSM $\ell_\infty$} & \multicolumn{2}{c}{PGD $\ell_\infty$}" in text
    assert r"\cmidrule(lr){3-4} \cmidrule(lr){5-6}" in text
    assert r"Defense & Clean & 8/255 & 16/255 & 8/255 & 16/255" in text
    (line,) = [x for x in text.partition("multicolumn")[2].splitlines() if x.startswith("inside & ")][:1]
    assert line.count(r"\textbf{48.5}") == 4  # fgsm and the worst case, at both radii
    assert r"\textbf{47.5}" not in text and r"50\%\_\{x\}" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 4  # two leaderboards, two matrices
    assert text.count("{") == text.count("}")
