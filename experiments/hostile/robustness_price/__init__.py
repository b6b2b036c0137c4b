"""The price of robustness: what noise costs median and vote beside hostile workers.

Claim: noise lets f hostile workers shift the median by a number times b, that of an
order statistic of the noise alone, exactly; systematic noise serves median and vote
better while few are hostile, and worse beyond. The paper (Remarks) names the trade-off;
the numbers are ours. The hostile of the digits send -1e6 times the honest mean.

    python -m experiments robustness_price --preset quick
    python -m experiments robustness_price         M = 7, and digits by the median too
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.harness.plots import panels
from experiments.common.harness.results import Result
from experiments.hostile.robustness_price import trade_off
from experiments.hostile.robustness_price.shifts import (
    PRESETS,
    Config,
    best_scales,
    largest_deviation,
    median_curves,
    vote_curves,
)
from experiments.hostile.robustness_price.trained import digit_curves

__all__ = ["Config", "PRESETS", "plot", "run"]

_STYLES = {"independent": "-", "systematic": "--"}


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Computes the exact worst cases and trains digits beside hostile workers."""
    print(f"medians of {config.median_workers}, votes of {config.vote_workers} workers")
    curves = median_curves(config) | vote_curves(config)
    best = best_scales(config)
    judged = [
        trade_off.shift_claim(config, curves),
        trade_off.simulation_claim(config, largest_deviation(config)),
        trade_off.price_claim(config, curves),
        trade_off.best_scale_claim(config, best),
        trade_off.crossover_claim(config, curves, "median"),
        trade_off.crossover_claim(config, curves, "vote"),
    ]
    trained, costs, data = digit_curves(config, checkpoints)
    curves |= trained
    judged += trade_off.digits_claims(config, curves, costs)
    extra = {
        "best_scale": [
            {name: list(getattr(choice, name)) for name in _STYLES} for choice in best
        ]
    }
    return Result(curves, tuple(judged), extra, against="b", data=data)


def plot(result: Result) -> Figure:
    """Draws shift and error of the median, right votes and accuracy against b."""
    rules = dict.fromkeys(
        name.split(", ")[1] for name in result.curves if name.startswith("digits")
    )
    figure, axes = panels(3 + len(rules))
    _draw(axes[0], result, "median", "shift_up", "median: shift / sd (dashed: syst.)")
    _draw(axes[1], result, "median", "rmse", "median: worst rms error / sd")
    _draw(axes[2], result, "vote", "right", "vote: P(right) at worst")
    for panel, rule in zip(axes[3:], rules, strict=True):
        title = f"{result.data}, {rule}: test accuracy"
        _draw(panel, result, f"digits, {rule}", "test_accuracy", title)
        panel.set_ylim(0, 1)
    for panel in axes[:2]:
        panel.set_yscale("symlog", linthresh=1.0)
    return figure


def _draw(axes: Axes, result: Result, rule: str, metric: str, title: str) -> None:
    """Draws one curve for each f, solid for independent and dashed for systematic."""
    for coupling, style in _STYLES.items():
        prefix = f"{rule}, {coupling}, f = "
        names = [name for name in result.curves if name.startswith(prefix)]
        for i, name in enumerate(names):
            curve = result.curves[name]
            label = name.rsplit(", ", 1)[1] if coupling == "independent" else None
            places = range(len(curve["b"]))
            axes.plot(places, curve[metric], style, color=f"C{i}", label=label)
    scales = [f"{scale:g}" for scale in curve["b"]]
    axes.set_xticks(range(len(scales)), scales)
    axes.set(xlabel="b", title=title)
    axes.legend(fontsize=7)
