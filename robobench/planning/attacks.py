"""Attacks of a run: which ones, at which radii, under which protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from robobench.attack_engine.base import Attack
from robobench.core.alternating_threat import AlternatingThreat
from robobench.core.numbers import canonical_norm, parse_eps, parse_radii, parse_train_threat
from robobench.core.paths import check_writable
from robobench.core.registry import unknown_name
from robobench.core.threat import ThreatModel
from robobench.data.image_file import check_output_file
from robobench.data.info import dataset_info
from robobench.errors import PluginError, RequestError
from robobench.planning.plan import AttackSpec
from robobench.planning.settings import Settings
from robobench.planning.validate import PROTOCOLS
from robobench.plugins.discovery import discover, load_attack, parse_attack_spec


def plan_attacks(settings: Settings) -> list[AttackSpec]:
    """Return the attacks of a run.

    Raises:
        RequestError: an unknown attack, one that does not work on the norm, or a wrong radius.
    """
    request = settings.request
    given = parse_radii(request.eps, settings.norm)  # plain radii belong to --norm
    names = request.attacks if request.attacks is not None else settings.run.attacks
    norms_used, specs = set(), []
    for name in dict.fromkeys(names):
        cls, values = parse_attack_spec(name)
        norm = cls.fixed_norm or settings.norm
        asked = norm == settings.norm or norm in given or settings.run.all_norms
        if request.attacks is None and not asked:
            continue
        reason = cls.why_unsupported(ThreatModel(norm, 0.1))
        if reason:
            if request.attacks is not None:
                raise RequestError(f"{reason}; leave '{name}' out" + (" or choose another --norm" if cls.norms else ""))
            settings.note(f"{reason}; left out of the default attacks")
            continue
        norms_used.add(norm)
        config = settings.plugin_config(cls, cls.name, values)
        for eps in _radii(settings, norm, given):
            attack = cls(config, ThreatModel(norm, eps))
            specs.append(AttackSpec(attack, PROTOCOLS[request.protocol]))
    for norm in given:
        if norm not in norms_used and norms_used:
            raise RequestError(f"--eps gives radii for {norm}, and no attack of this run is on {norm}")
    return specs


def choose_eot(attacks: Iterable[Attack]) -> int | None:
    """Return the most passes that the reference settings of an attack average over; None if no attack averages."""
    most = max((attack.eot for attack in attacks), default=1)
    return most if most > 1 else None


def one_threat(norm: str, eps: Any, dataset: str | None) -> ThreatModel:
    """Return the ball of a norm and one radius; default: the data set's first. Raises RequestError."""
    norm = canonical_norm(norm)
    radii = (eps,) if isinstance(eps, (str, float, int)) else tuple(eps or ())
    if not radii and dataset is not None:
        radii = dataset_info(dataset).eps.get(norm, ())[:1]
    if len(radii) != 1:
        raise RequestError(f"give one radius of the {norm} ball, such as eps='8/255', got {len(radii)}")
    return ThreatModel(norm, parse_eps(radii[0], norm))


def check_one_ball(file: Path, attacks: Iterable[Attack]) -> Path:
    """Return the file; raise RequestError unless it can hold images, and all attacks have the same ball."""
    check_output_file(file)
    check_writable(file.parent, "--save-adversarial")
    threats = list(dict.fromkeys(str(attack.threat) for attack in attacks))
    if len(threats) != 1:
        raise RequestError(
            f"--save-adversarial holds the images of one ball, got {', '.join(threats) or 'no attack'}; give one "
            "radius with --eps, and attacks of one norm"
        )
    return file


def gradient_free_attacks(make_config: Callable[[Any, str], Any], attacks: list[Attack]) -> list[Attack]:
    """Return every other registered gradient-free attack that can be imported, at the threats of `attacks`.

    Those of other libraries are left out.

    Args:
        make_config: maps an attack class and its name to the attack's config.
    """
    taken = {(attack.name, attack.threat) for attack in attacks}
    out: list[Attack] = []
    for name, plugin in sorted(discover("attack").items()):
        if plugin.library is not None:
            continue
        try:
            cls = load_attack(name)
        except PluginError:
            continue
        if not cls.gradient_free or cls.spec_field is not None:
            continue
        for threat in dict.fromkeys(attack.threat for attack in attacks):
            fits = cls.why_unsupported(threat) is None and cls.fixed_norm in (None, threat.norm)
            if fits and (name, threat) not in taken:
                out.append(cls(make_config(cls, name), threat))
    return out


def radii_of(settings: Settings, norm: str) -> tuple[tuple[float, ...], float]:
    """Return the data set's radii for attacks and for training in a norm; raises RequestError."""
    if norm not in settings.info.eps:
        raise unknown_name("norm", norm, settings.info.eps)
    return settings.info.eps[norm], settings.info.train_eps[norm]


def train_threat(settings: Settings) -> ThreatModel:
    """Return the threat model to train against, or several in turn; raises RequestError for a wrong norm or radius."""
    request = settings.request
    threats = []
    for norm, given in parse_train_threat(request.train_norm or settings.norm, request.train_eps):
        _, radius = radii_of(settings, norm)
        own = settings.run.linf_eps[:1] if norm == "Linf" else ()
        eps = parse_eps(given or next(iter(own), radius), norm)
        if eps == 0:
            raise RequestError("--train-eps 0 trains against nothing; use --defense standard for that")
        threats.append(ThreatModel(norm, eps))
    return threats[0] if len(threats) == 1 else AlternatingThreat(threats)


def _radii(settings: Settings, norm: str, given: dict[str, tuple[str, ...]]) -> list[float]:
    """Return the radii of an attack: those of --eps, else the preset's, else the data set's."""
    if norm in given:
        texts: tuple[Any, ...] = given[norm]
    elif norm == "L2" and settings.run.l2_eps:
        texts = settings.run.l2_eps
        settings.note(
            "the paper preset gives attacks on L2 the paper's own 8/255 and 16/255; in L2 these are almost "
            "nothing (a full Linf 8/255 step is 12.2 long at 224 px), so do not compare them with other tables"
        )
    elif norm == "Linf" and settings.run.linf_eps:
        texts = settings.run.linf_eps
    else:
        texts = radii_of(settings, norm)[0]
        texts = texts if settings.run.all_radii or settings.request.all_radii else texts[:1]
    radii = [parse_eps(text, norm) for text in texts]
    if 0 in radii:
        raise RequestError("eps 0 leaves nothing to attack; clean accuracy is always reported: leave it out")
    return list(dict.fromkeys(radii))
