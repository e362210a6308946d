from dataclasses import asdict
from typing import Any

import numpy as np

from robobench.attacks.transfer import Transfer, TransferConfig
from robobench.core.threat import ThreatModel
from robobench.execution.reproduce import _attack_of
from robobench.planning.repro_command import ReproCommands, group_by_command, non_default_settings
from tests.helpers.boards import BOARD


def test_cells_of_several_commands_are_grouped():
    def cell(attack, norm, steps=20):
        recipe = {"eval_batch_size": 256, "transfer_source": None, "attack": {"config": {"steps": steps}}}
        return {"attack": attack, "threat_norm": norm, "precision": "fp32", "threads": 1, "recipe": recipe}

    linf, l2, fixed, hard = (
        cell("pgd", "Linf"),
        cell("pgd", "L2"),
        cell("autoattack-l2", "L2"),
        cell("pgd", "Linf", 100),
    )
    assert group_by_command([linf, fixed, l2, hard]) == [[linf, fixed], [l2], [hard]]
    voted: Any = {**linf, "eot": 20, "verdict": "11/20"}
    assert group_by_command([linf, voted]) == [[linf], [voted]]
    assert group_by_command([]) == [[]]


def test_transfer_file_is_reproduced_by_name_alone(tmp_path):
    np.savez(tmp_path / "made.npz", adv=np.zeros((2, 3, 8, 8), np.float32))
    attack = Transfer(TransferConfig(file=str(tmp_path / "made.npz")), ThreatModel("Linf", 0.1))
    config = asdict(attack.config)
    again = _attack_of({"attack": attack.name, "config": config, "norm": "Linf", "eps": 0.1})
    assert again.name == attack.name and again.config == attack.config
    assert non_default_settings("attack", attack.name, config, "quick", "cnn") == []  # the name says it all


def test_only_named_records_are_read():
    keys = sorted(folder.name for folder in (BOARD / "artifacts" / "evaluations").iterdir())[:3]
    found = ReproCommands(BOARD, keys).records
    assert sorted(record["key"] for records in found.values() for record in records) == keys
