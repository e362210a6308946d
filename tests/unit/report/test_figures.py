import numpy as np

from robobench.report import figures
from robobench.report.leaderboard import rank_models
from tests.helpers.rows import make_table_rows


def test_difference_is_magnified_around_gray():
    images = np.full((2, 3, 8, 8), 0.5)
    adv = images.copy()
    adv[0, :, 0, 0] = 0.6
    (sheet,) = figures.plot_adversarial_images(images, adv, ["a", "b"], "t").axes[0].images
    shown = sheet.get_array()[-96:, :96]  # third row, first image; 8 pixels are drawn as 96
    assert tuple(shown[0, 0]) == (255, 255, 255, 255) and tuple(shown[-1, -1]) == (128, 128, 128, 255)


def test_images_are_placed_in_rows_and_columns():
    rows = {name: np.full((3, 3, 4, 6), value) for name, value in (("low", -1.0), ("half", 0.5), ("high", 2.0))}
    (axes,) = figures.plot_image_rows(rows, "t", ["a", "b", "c"]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(rows)
    sheet = np.asarray(axes.images[0].get_array())
    height, width = 4 * 16, 6 * 16
    assert sheet.shape == (3 * height + 2 * figures.IMAGE_GAP, 3 * width + 2 * figures.IMAGE_GAP, 4)
    for x in axes.get_xticks():
        column = [tuple(sheet[round(y), round(x)]) for y in axes.get_yticks()]
        assert column == [(0, 0, 0, 255), (128, 128, 128, 255), (255, 255, 255, 255)]
    assert (sheet[height : height + figures.IMAGE_GAP] == 0).all()  # transparent gaps


def test_large_images_are_drawn_small():
    assert max(figures._to_pixels(np.zeros((3, 224, 224))).shape) <= 112


def test_scatter_has_a_dot_for_every_model():
    """White-box filled and transfer hollow, at clean accuracy; a defense with several seeds gets an ellipse."""
    rows = make_table_rows({"at": 0.4, "at (2)": 0.5, "trades": 0.3}, threats=(("Linf", 8 / 255),))
    rows["seed"] = rows["defense"].eq("at (2)").astype(int)
    rows["defense"] = rows["defense"].str.removesuffix(" (2)")
    (axes,) = figures.plot_clean_against_robust(rank_models(rows)).axes
    dots = [tuple(np.round(xy, 6)) for c in axes.collections for xy in np.asarray(c.get_offsets()).tolist()]
    assert {(95.0, 40.0), (95.0, 50.0), (95.0, 30.0), (95.0, 60.0)} <= set(dots) and len(axes.patches) == 1
    assert axes.get_title(loc="left").startswith("Linf 8/255")


def test_eps_axis_is_written_in_steps_of_255():
    lines = rank_models(make_table_rows({"at": 0.4}, threats=(("Linf", 8 / 255), ("Linf", 16 / 255))))
    (axes,) = figures.plot_accuracy_curve(lines, "Linf").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "8/255", "16/255"]
