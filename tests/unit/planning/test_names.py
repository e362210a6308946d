from robobench.core.registry import match_name
from robobench.planning.names import match_request
from robobench.planning.request import ExperimentConfig


def test_known_names_ignore_case():
    request = match_request(
        ExperimentConfig(
            defenses=("AT", "Fast-AT", "mine"),
            attacks=("PGD", "Transfer:My.safetensors"),
            dataset="CIFAR10",
            model="ResNet18",
            preset="Quick",
            sets=("TRADES.beta=3",),
        )
    )
    assert request.defenses == ("at", "fast-at", "mine")
    assert request.attacks == ("pgd", "transfer:My.safetensors")  # a path keeps its case
    assert (request.dataset, request.model, request.preset) == ("cifar10", "resnet18", "quick")
    assert request.sets == ("trades.beta=3",)


def test_ambiguous_or_exact_names_stay():
    assert match_name("a", ["A", "a"]) == "a" and match_name("AB", ["ab", "aB"]) == "AB"
