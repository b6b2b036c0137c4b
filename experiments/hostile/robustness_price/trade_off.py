"""What is claimed about the price of robustness."""

from collections.abc import Mapping

import numpy as np

import jaxmedian as jm
from experiments.common.harness.results import Claim, Curves
from experiments.common.training.outcomes import report, verdict
from experiments.hostile.robustness_price.shifts import COUPLINGS, Config, curve_name


def shift_claim(config: Config, curves: Curves) -> Claim:
    """Compares shift / b at the largest b with that of equal workers."""
    scale, most = config.scales[-1], config.median_workers // 2
    shifts, ratios = [], []
    for f in range(1, most + 1):
        up = curves[curve_name("median", "independent", f)]["shift_up"]
        equal = np.zeros(config.median_workers - f)
        unit = jm.noise.Noise(config.law, 1.0)
        limit = jm.theory.hostile_median_shift(equal, unit, f).up
        shifts.append(f"{up[0]:.2f} -> {up[-1]:.2f} (f = {f}, limit {limit:.3f} b)")
        ratios.append(up[-1] / (limit * scale))
    return Claim(
        "Noise sells robustness: f hostile workers shift the median by a number times "
        "b, that of the order statistic of the noise alone",
        f"M = {config.median_workers}, b = 0 -> {scale:g} sd: {', '.join(shifts)}",
        bool(np.abs(np.array(ratios) - 1).max() < 0.05) if scale >= 8 else None,
        paper="robustness falls (Remarks), no number",
    )


def simulation_claim(config: Config, deviation: float) -> Claim:
    """Judges the comparison with jm.perturbed_median."""
    return Claim(
        "jm.perturbed_median with workers at +inf has the exact shift",
        f"{config.draws:,} draws, both couplings: at most {deviation:.1f} standard "
        "errors off",
        deviation <= 5,
    )


def best_scale_claim(config: Config, best: list[jm.theory.scales.BestScale]) -> Claim:
    """Tabulates the best b against f: it need not fall with every hostile worker."""
    found = [
        f"f = {f}: {choice.independent.scale:.2f}, {choice.systematic.scale:.2f}"
        for f, choice in enumerate(best)
    ]
    return Claim(
        "Which b has the least worst error of the median",
        f"M = {config.median_workers}, independent and systematic, in sd: "
        + "; ".join(found),
    )


def price_claim(config: Config, curves: Curves) -> Claim:
    """Compares the worst error at b = 1 with that without noise, against f."""
    place = config.scales.index(1.0)
    parts, gains = [], []
    for f in range(config.median_workers // 2 + 1):
        errors = [curves[curve_name("median", c, f)]["rmse"] for c in COUPLINGS]
        gains.append(errors[1][place] - errors[1][0])
        parts.append(
            f"f = {f}: {errors[0][0]:.2f} -> {errors[0][place]:.2f} and "
            f"{errors[1][place]:.2f}"
        )
    return Claim(
        "What b = 1 sd costs the median at worst grows with the hostile",
        f"worst root mean squared error, b = 0 -> 1 sd, independent and systematic: "
        f"{'; '.join(parts)}",
        bool(gains[-1] > gains[0]),
    )


def crossover_claim(config: Config, curves: Curves, rule: str) -> Claim:
    """Finds for each b the fewest hostile with which systematic noise is worse."""
    metric, sign = ("rmse", 1.0) if rule == "median" else ("right", -1.0)
    workers = config.median_workers if rule == "median" else config.vote_workers
    found = []
    for i, scale in enumerate(config.scales[1:], start=1):
        harm = [
            sign
            * (
                curves[curve_name(rule, "systematic", f)][metric][i]
                - curves[curve_name(rule, "independent", f)][metric][i]
            )
            for f in range(workers // 2 + 1)
        ]
        worse = [f for f, more in enumerate(harm) if more > 1e-12]
        found.append((scale, worse[0] if worse else None))
    return Claim(
        f"Systematic noise serves the {rule} better while few are hostile, and worse "
        "beyond",
        f"M = {workers}, worse from f = "
        + ", ".join(f"{f} (b = {scale:g})" for scale, f in found),
        all(f != 0 for _, f in found) and any(f for _, f in found)
        if workers >= 5
        else None,
    )


def digits_claims(
    config: Config, curves: Curves, costs: Mapping[str, np.ndarray]
) -> tuple[Claim, ...]:
    """Tabulates the accuracies, and judges what noise does with and without hostile.

    Args:
      config: the settings.
      curves: the last test accuracies.
      costs: what the largest b costs each seed, [S], by the names of the curves.
    """
    claims = []
    for rule in config.rules:
        for f in config.digit_hostile:
            table = [
                f"{coupling} "
                + ", ".join(
                    f"{a:.3f}"
                    for a in curves[curve_name(f"digits, {rule}", coupling, f)][
                        "test_accuracy"
                    ]
                )
                for coupling in COUPLINGS
            ]
            claims.append(
                Claim(
                    f"Digits, {rule}, {f} of {config.digit_workers} hostile: test "
                    f"accuracy at b = {', '.join(map(str, config.digit_scales))}",
                    "; ".join(table),
                )
            )
        claims.append(_cost_claim(config, rule, costs))
    return tuple(claims)


def _cost_claim(config: Config, rule: str, costs: Mapping[str, np.ndarray]) -> Claim:
    """Compares what noise costs each seed with hostile workers and without."""
    of_seeds = {
        f: np.mean(
            [costs[curve_name(f"digits, {rule}", c, f)] for c in COUPLINGS], axis=0
        )
        for f in config.digit_hostile
    }
    more = []
    if config.num_steps >= 300 and 0 in of_seeds:
        more = [
            verdict(cost - of_seeds[0], lambda mean, error: mean > 2 * error)
            for f, cost in of_seeds.items()
            if f
        ]
    return Claim(
        f"Digits, {rule}: the largest b costs more accuracy, against the best b, "
        "beside any number of hostile workers than without (b chosen on validation "
        "digits; two standard errors)",
        ", ".join(f"{report(cost)} (f = {f})" for f, cost in of_seeds.items()),
        all(more) if more and None not in more else None,
        paper="robustness falls (Remarks)",
    )
