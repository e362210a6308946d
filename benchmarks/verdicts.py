"""Whether a figure is what was asked for. What the benchmarks of claims share."""


def verdict(claim: str, figure: float, sign: str, asked: float, fair: bool = True) -> str:
    """Say whether a figure is what was asked for; `fair` is whether this run was one to say so."""
    holds = figure >= asked if sign == ">=" else figure <= asked
    word = ("holds" if holds else "FAILS") if fair else "not measured (this is another setting)"
    return f"- {claim}: {figure:.2f}, asked {sign} {asked:.3g}: {word}"
