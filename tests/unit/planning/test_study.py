import pytest

from robobench.errors import RequestError
from robobench.planning.study import read_study

STUDY = """
defenses = ["at", "trades"]
model = ["cnn", "resnet20"]
seeds = [0, 1]
eps = ["8/255", "16/255"]
train-eps = 0.05

[set]
trades.beta = [3, 6.5]
run.attacks = ["pgd", "fgsm"]
run.baseline_control = false
"""


@pytest.fixture
def read(tmp_path):
    def read(text, **overrides):
        (tmp_path / "study.toml").write_text(text)
        return read_study(tmp_path / "study.toml", overrides)

    return read


def test_list_in_place_of_value_spans(read):
    """Fields that hold several values keep their list."""
    points = read(STUDY).points
    assert [p.label for p in points] == [
        f"model={model}, trades.beta={beta}" for model in ("cnn", "resnet20") for beta in ("3", "6.5")
    ]
    request = points[1].request
    assert (request.model, request.seeds, request.eps) == ("cnn", (0, 1), ("8/255", "16/255"))
    assert request.train_eps == "0.05"
    assert request.sets == ("trades.beta=6.5", "run.attacks=pgd,fgsm", "run.baseline_control=false")


def test_list_of_lists_spans_a_list_field(read):
    points = read('attacks = [["pgd"], ["pgd", "fgsm"]]\n[set]\nrun.linf_eps = [["0.1"], ["0.2"]]').points
    assert [(p.request.attacks, p.request.sets) for p in points] == [
        (attacks, (f"run.linf_eps={eps}",)) for attacks in (("pgd",), ("pgd", "fgsm")) for eps in ("0.1", "0.2")
    ]


def test_star_is_every_defense(read):
    """A list of values spans; a field that no defense has is refused."""
    points = read('[set]\n"*".average = ["ema", "swa"]\n"*".drops = [0.5, 0.9]\nat.average = "none"').points
    assert [p.request.sets for p in points] == [
        (f"*.average={kind}", "*.drops=0.5,0.9", "at.average=none") for kind in ("ema", "swa")
    ]
    with pytest.raises(RequestError, match=r"unknown field of .* 'averge'; did you mean 'average'"):
        read('[set]\n"*".averge = ["ema", "swa"]')


def test_overrides_replace_fields_and_single_settings(read):
    points = read(STUDY, model="cnn", sets={"TRADES.beta": "1"}).points
    assert len(points) == 1 and points[0].label == "" and points[0].request.model == "cnn"
    assert points[0].request.sets[0] == "trades.beta=1" and len(points[0].request.sets) == 3


def test_run_tables_share_what_is_above(read):
    points = read('seeds = [0]\n[[run]]\ndefense = "at"\n[[run]]\ndefense = "trades"\nset.trades.beta = [3, 6]').points
    assert [p.request.defenses for p in points] == [("at",), ("trades",), ("trades",)]
    assert [p.label for p in points] == ["", "trades.beta=3", "trades.beta=6"]
    assert {p.request.seeds for p in points} == {(0,)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('modell = "cnn"', "'modell'; did you mean 'model'?"),
        ("[set]\ntrades.betta = [1, 2]", "unknown field of trades 'betta'; did you mean 'beta'?"),
        ("[set]\ntrade.beta = [1, 2]", ".toml' 'trade'; did you mean 'trades'?"),
        ("[set]\nbeta = 3", "[set] holds NAME.FIELD = VALUE"),
        ('out = ["a", "b"]', "out takes one value for all runs"),
        ('epochs = "x"', "epochs takes a value of type int, got 'x'"),
        ("epochs = 1.5", "epochs takes a value of type int, got '1.5'"),
        ("epochs = [1, 1]", "lists a value twice"),
        ("epochs = []", "empty list"),
        ("defenses = []", "empty list"),
        ("seeds = []", "empty list"),
        ("", "holds no keys, or no"),
        ("epochs = 1\nrun = []", "holds no keys, or no"),
        ("seed = 1\nseeds = [2]", "gives seeds twice"),
        ("overwrite = true", "add --overwrite"),
        ("model =", "is not a TOML file"),
        ("weights = 'w.pt'", "unknown key of"),
        (f"epochs = {list(range(101))}\nbatch_size = {list(range(1, 101))}", "spans 10,100 requests"),
        ('[[run]]\nbaseline = "at"', "baseline belongs to the whole file; write it above the first [[run]]"),
        ("[set]\ntrade.beta = 3", ".toml' 'trade'; did you mean 'trades'?"),
    ],
)
def test_wrong_files_are_refused(text, words, read):
    with pytest.raises(RequestError) as caught:
        read(text)
    assert words in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no experiment file"):
        read_study(tmp_path / "none.toml")


def test_overwrite_of_grid_is_refused(read):
    """The second request would replace what the first one built."""
    with pytest.raises(RequestError, match="--overwrite does not work"):
        read(STUDY, overwrite=True)
