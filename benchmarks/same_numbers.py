"""Train every defense and run every attack on it at a small size, and write digests of all results.

Two versions of robobench give the same numbers if their files are equal: run this at both commits on one machine.

    python benchmarks/same_numbers.py before.json
    python benchmarks/same_numbers.py after.json --compare before.json

About 15 minutes on one core. The file holds the SHA-256 of every trained model's weights, and for every
(model, attack, norm, eps, protocol) the outcome of each image as a string of 0 and 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from robobench.data import load_dataset

EXAMPLES = 48
BOTH_NORMS = (
    *("pgd", "fgsm", "cw", "mifgsm", "noise", "apgd-ce", "apgd-dlr", "apgd-t"),
    *("fab-t", "square", "autoattack", "pyautoattack"),
)
LINF_ONLY = ("jitter", "torchattacks-autoattack", "torchattacks-fgsm", "torchattacks-jitter", "torchattacks-pgd")
L2_ONLY = ("autoattack-l2", "torchattacks-pgdl2")
SETTINGS = (
    *("--dataset", "digits", "--model", "cnn", "--preset", "quick", "--epochs", "8", "--threads", "1"),
    *("--device", "cpu", "--precision", "fp32", "--compile", "off"),
    *("--set", "run.train_images=1000", "--set", "pgd.restarts=2", "--set", "square.queries=100"),
)


def transfer_file(folder: Path) -> Path:
    """Write the test images with uniform noise of 0.05 added, for `transfer:FILE`."""
    split = load_dataset("digits", need_train=False).test
    images = split.images(torch.arange(EXAMPLES))
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = folder / "noisy.safetensors"
    save_file({"adv": (images + 0.05 * noise).clamp(0, 1).contiguous()}, path)
    return path


def digest(file: Path) -> str:
    """Hash names, shapes and values of a weights file; its header may be laid out in any order."""
    out = hashlib.sha256()
    for name, value in sorted(load_file(file).items()):
        out.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        out.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


def collect(store: Path) -> dict[str, dict[str, str]]:
    """Read weights and outcomes from a store; `transfer:FILE` is listed without its path."""
    found: dict[str, dict[str, str]] = {"weights": {}, "outcomes": {}}
    for config_file in sorted(store.glob("*/config.json")):
        config = json.loads(config_file.read_text())
        name = f"{config['defense']} seed {config['seed']}"
        found["weights"][name] = digest(config_file.parent / "model.safetensors")
    for record_file in sorted(store.glob("artifacts/evaluations/*/record.json")):
        r = json.loads(record_file.read_text())
        cell = f"{r['defense']} seed {r['seed']}, {r['attack'].partition(':')[0]}, {r['threat_norm']}"
        cell += f" {r['threat_eps']:g}, {r['protocol']}"
        outcome = f"clean {r['clean_bits']} robust {r['robust_bits']}" if r["status"] == "ok" else r["reason"]
        found["outcomes"][cell] = outcome
    return found


def main() -> int:
    """Run, write the file, and compare it with another one if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("--compare", type=Path, help="JSON file of another version")
    parser.add_argument("--store", type=Path, help="keep trained models here, and resume from it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = options.store or Path(temporary) / "store"
        linf = [*BOTH_NORMS, *LINF_ONLY, f"transfer:{transfer_file(Path(temporary))}"]
        runs = (
            ["--norm", "Linf", "--eps", "0.1", "--attacks", ",".join(linf)],
            ["--norm", "L2", "--train-norm", "Linf", "--eps", "1", "--attacks", ",".join((*BOTH_NORMS, *L2_ONLY))],
        )
        for flags in runs:
            words = ["compare", *SETTINGS, "--examples", str(EXAMPLES), "--out", str(store), *flags]
            subprocess.run([sys.executable, "-m", "robobench", *words], stdout=subprocess.DEVNULL, check=False)
        found = collect(store)
    options.file.write_text(json.dumps(found, indent=1, sort_keys=True))
    print(f"{len(found['weights'])} models, {len(found['outcomes'])} outcomes: {options.file}")
    if not options.compare:
        return 0
    other, different = json.loads(options.compare.read_text()), 0
    for kind, values in found.items():
        for name in sorted(values.keys() | other[kind].keys()):
            if values.get(name) != other[kind].get(name):
                different += 1
                print(f"different: {kind}, {name}")
    print("all equal" if not different else f"{different} differ")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
