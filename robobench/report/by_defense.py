"""Combine the seeds of a defense into one line: mean, standard deviation and number of trainings."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from robobench.report.formatting import iter_groups
from robobench.report.leaderboard import COSTS, LEADERBOARD_KEYS, add_ranks

SEED = r" \((?:control, )?seed [\d.]+\)"  # of a model's name
SETTING = ["defense", "model", "preset", "precision", "config_digest"]
ACCURACIES = ("clean", "worst", "transfer", "gap")


def combine_seeds(lines: pd.DataFrame, sources: Collection[str] = ()) -> pd.DataFrame:
    """Return one line for every defense and setting of each leaderboard, ranked by the mean worst case.

    Accuracies and costs are means over trainings; `clean_std` and so on are sample standard deviations, NaN for one
    training, which keeps its 95 % CI over images. For several trainings, `ci_low` and `ci_high` are the mean minus and
    plus one standard deviation. `best` marks the highest mean and every line inside its interval.

    Args:
        lines: of `rank_models`.
        sources: weights digests of transfer sources, whose accuracy under their own examples is left out.
    """
    own = lines["weights_digest"].isin(set(sources))
    lines = lines.assign(**{name: lines[name].astype(float).mask(own) for name in ("transfer", "gap")})
    lines = lines.assign(defense=lines["defense"].str.replace(SEED, "", regex=True))
    out = []
    for part in iter_groups(lines, [*LEADERBOARD_KEYS, *SETTING]):
        line = part.iloc[0].to_dict()
        numbers = part[[*ACCURACIES, *COSTS]].apply(pd.to_numeric)
        line |= numbers.mean().to_dict()
        line |= {f"{name}_std": numbers[name].std(ddof=1) for name in ACCURACIES}
        line |= {"n": len(part), "seed": ",".join(f"{seed:g}" for seed in sorted(part["seed"].dropna()))}
        if len(part) > 1:
            line |= {"ci_low": line["worst"] - line["worst_std"], "ci_high": line["worst"] + line["worst_std"]}
        line["flags"] = ",".join(sorted({flag for flags in part["flags"] for flag in flags.split(",") if flag}))
        line["unranked"] = "; ".join(dict.fromkeys(reason for reason in part["unranked"] if reason))
        out.append(line)
    return add_ranks(pd.DataFrame(out)).reset_index(drop=True)
