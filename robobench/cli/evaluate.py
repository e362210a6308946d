"""`robobench evaluate`: attacks a model that was trained elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robobench.cli import options as o
from robobench.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from robobench.planning.plan import Plan
    from robobench.planning.request import ExperimentConfig
    from robobench.report.outcome import Gate
    from robobench.results.records import EvaluationRecord

HELP = """Attack a model trained elsewhere.

Without --preset and --attacks, FGSM, PGD and the standard AutoAttack run at full strength, at the radius of
RobustBench. With --transfer-source, transfer examples are used too.
"""
EPILOG = """
Examples:

  robobench evaluate weights.safetensors --model resnet18 --dataset cifar10

  robobench evaluate weights.pth --model resnet18 --dataset cifar10 --minutes 10 --name "v2.3"

  robobench evaluate weights.pth --model resnet18 --dataset cifar10 --fail-under 0.30@Linf:8/255 --json result.json

  robobench evaluate weights.pth --model resnet18 --dataset cifar10 --attacks screen --until 2

  robobench evaluate --model-from runs/at-cnn-digits-s0-0123456789 --set pgd.steps=100 --attacks pgd

  robobench evaluate --model robustbench:Wong2020Fast --dataset cifar10 --attacks autoattack --model-info fast.json

  robobench evaluate weights.pth --model resnet18 --dataset cifar10 --transfer-source resnet18=plain.pth

  robobench evaluate weights.pth --model noisy.py:net --dataset cifar10 --attacks pgd,square --eot 20

  robobench evaluate weights.pth --model resnet18 --dataset cifar10 --attacks autoattack --save-adversarial adv.pt

  robobench evaluate hf:OWNER/REPO --attacks autoattack
"""

Until = Annotated[
    float | None,
    typer.Option(
        help="Percentage points, such as 2: attack images in random order and stop once the accuracy is known "
        "within as much on either side, by a 95 % confidence sequence; for one attack at one radius."
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        help="MODEL, MODEL=WEIGHTS or hf:OWNER/REPO to make transfer examples on; given several times, they are "
        "made on the mean of the logits."
    ),
]


@dataclass(kw_only=True)
class ModelFlags(o.EvaluateFlags):
    """Flags of adaptive attacks and of their images."""

    eot: Annotated[
        int | None,
        typer.Option(help="Average gradients and outputs over N passes (EoT), for models with random outputs."),
    ] = None
    verdict: Annotated[
        str | None,
        typer.Option(help="K/N: misclassified if K of N fresh passes are wrong; default: the majority of --eot."),
    ] = None
    bpda: Annotated[
        str | None,
        typer.Option(help="MODEL or MODEL=WEIGHTS that gives the gradients (BPDA); verdicts are the model's own."),
    ] = None
    save_adversarial: Annotated[
        Path | None,
        typer.Option(help="Write the adversarial images: .safetensors, or .pt as AutoAttack's script does."),
    ] = None


@o.with_flags(ModelFlags)
def main(
    flags: ModelFlags,
    weights: Annotated[
        Path | None,
        typer.Argument(help="safetensors, a state dict or hf:OWNER/REPO; none if the factory loads its own."),
    ] = None,
    model_from: Annotated[
        Path | None,
        typer.Option(
            help="STORE/NAME of a model trained here, or hf:OWNER/REPO; sets --model, --dataset and image size, prints "
            "recorded results."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in tables; default: that of the weights file.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Run only the strongest attacks that fit into this time; names the others.")
    ] = None,
    until: Until = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help="ACCURACY@NORM:EPS, such as 0.30@Linf:8/255: exit status 1 if the worst case is lower."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results of this run as JSON.")] = None,
    transfer_source: Sources = None,
    weights_key: o.WeightsKey = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Normalization of the model, such as 0.5,0.5,0.5; added as its first layer."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Normalization of the model.")] = None,
    model_info: Annotated[
        Path | None, typer.Option(help="Write RobustBench's JSON here; a description already in it is kept.")
    ] = None,
) -> int:
    """Evaluate one model."""
    gates = _parse_gates(fail_under or ())
    protocol = "both" if transfer_source else "white-box"
    own: dict[str, Any] = {
        "weights": weights,
        "transfer_source": tuple(transfer_source or ()),
        "mean": mean,
        "std": std,
        "name": name,
    }
    own |= {"weights_key": weights_key, "until": until}
    request = o.make_request(flags, protocol=protocol, external=True, **own)
    request, model_from = _use_given_model(request, model_from)
    request = replace(request, preset=request.preset or "reference")
    if json_file is not None:
        from robobench.core.paths import check_writable

        check_writable(json_file.parent, "--json")
    if minutes is not None:
        request = _fit_attacks(request, minutes)
    output = _Output(gates, model_from, json_file, model_info)
    status = o.execute(request, flags, after=output.write, check_plan=output.check_plan)
    return status or int(bool(output.missed))


def _use_given_model(request: ExperimentConfig, model_from: Path | None) -> tuple[ExperimentConfig, Path | None]:
    """Return the request for the model of --model-from or of the Hub, and the local folder of --model-from."""
    if model_from is None and not str(request.weights).startswith("hf:"):
        return request, None
    from robobench.planning.stored_models import local_model, use_hub_weights, use_stored_model

    if model_from is None:
        return use_hub_weights(request), None
    model_from = local_model(model_from)
    return use_stored_model(request, model_from), model_from


@dataclass
class _Output:
    """What `evaluate` writes besides the tables, and the gates that were missed."""

    gates: list[Gate]
    model_from: Path | None
    json_file: Path | None
    model_info: Path | None
    missed: list[str] = field(default_factory=list)

    def write(self, records: list[EvaluationRecord], console: Console) -> None:
        """Print the outcome in a sentence, and write the files."""
        from robobench.report import outcome
        from robobench.results.rows import group_by_model, make_frame, make_rows

        rows = make_frame(records)
        own_rows = rows[rows["weights_digest"] != rows["source_digest"]]
        for sentence in outcome.outcome_sentences(own_rows):
            console.print(sentence, markup=False, highlight=False)
        if self.model_from is not None:
            _print_recorded(self.model_from, own_rows, console)
        if self.json_file is not None:
            outcome.write_evaluation(rows, self.json_file)
        if self.model_info is not None:
            from robobench.report.robustbench import write_model_info

            all_rows = [row for group in group_by_model(records).values() for row in make_rows(group)]
            write_model_info(all_rows, self.model_info)
        self.missed = [line for line in (gate.failure(own_rows) for gate in self.gates) if line]
        for line in self.missed:
            typer.echo(f"robobench: {line}", err=True)

    def check_plan(self, plan: Plan) -> None:
        """Refuse a gate at a radius that no attack has, and a --model-info that RobustBench would not take."""
        for gate in self.gates:
            if not any(gate.is_at(spec.threat.norm, spec.threat.eps) for spec in plan.attacks):
                radii = ", ".join(dict.fromkeys(str(spec.threat) for spec in plan.attacks))
                raise RequestError(
                    f"--fail-under is at {gate.norm} {gate.eps:g}, and no attack of this run is; it attacks {radii}; "
                    "add --norm and --eps"
                )
        if self.model_info is not None:
            if plan.until is not None:
                raise RequestError("--model-info needs all images, and --until stops before; leave one of them out")
            from robobench.report.robustbench import check_model_info

            check_model_info(plan)


def _parse_gates(texts: list[str] | tuple[()]) -> list[Gate]:
    if not texts:  # the import is slow
        return []
    from robobench.report.outcome import Gate

    return [Gate.parse(text) for text in texts]


def _print_recorded(folder: Path, rows: pd.DataFrame, console: Console) -> None:
    """Print the white-box results recorded for a stored model at the radii of `rows`, on the same images."""
    from robobench.core.formatting import format_eps
    from robobench.results.rows import read_records

    count, digest = int(rows.iloc[0]["examples"]), rows.iloc[0]["data_digest"]
    radii = set(zip(rows["threat_norm"], rows["threat_eps"], strict=True))
    lines = {}
    for record in read_records(folder.parent):
        here = record["training"] == folder.name and record["protocol"] == "white-box" and record["status"] == "ok"
        same = record["data_digest"] == digest and (record["threat_norm"], record["threat_eps"]) in radii
        bits = (record["robust_bits"] or "")[:count]
        if here and same and len(bits) == count:
            threat = f"{record['threat_norm']} {format_eps(record['threat_eps'])}"
            what = f"{record['attack']} ({record['attack_budget']}) {threat}"
            lines[what] = f"recorded: {what}: {100 * bits.count('1') / count:.1f} % of the same {count} images"
    for what in sorted(lines):
        console.print(lines[what], markup=False, highlight=False)
    if not lines:
        console.print(f"recorded: nothing at these radii on these {count} images")


def _fit_attacks(request: ExperimentConfig, minutes: float) -> ExperimentConfig:
    """Return the request with the strongest attacks that are estimated to fit; note what is left out."""
    import torch

    from robobench.core.formatting import format_duration
    from robobench.planning.cost import forward_seconds_per_image
    from robobench.planning.planner import make_plan

    plan = make_plan(request)
    torch.set_num_threads(plan.threads)
    forward = min(forward_seconds_per_image(plan, plan.models[0]) for _ in range(3))
    seconds: dict[str, float] = {}
    for spec in plan.attacks:
        cost = spec.attack.cost
        each = float("inf") if cost is None else plan.eot * cost * forward * plan.examples * len(spec.protocols)
        seconds[spec.attack.name] = seconds.get(spec.attack.name, 0.0) + each
    left, chosen, out = 60 * minutes, [], []
    for name in sorted(seconds, key=lambda name: -seconds[name]):
        if seconds[name] <= left:
            left -= seconds[name]
            chosen.append(name)
        else:
            known = seconds[name] < float("inf")
            out.append(f"{name} ({format_duration(seconds[name]) + ' at most' if known else 'unknown time'})")
    if not chosen:
        raise RequestError(
            f"--minutes {minutes:g}: no attack fits ({', '.join(out)}); allow more minutes, or use fewer images with "
            "--examples"
        )
    if out:
        typer.echo(f"note: --minutes {minutes:g} leaves out {', '.join(out)}; the result is a weaker bound", err=True)
    return replace(request, attacks=tuple(chosen))
