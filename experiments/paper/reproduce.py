"""The main job: the paper's Figures 1 and 2 in one go, with a table of what held.

    python -m experiments reproduce                 toy and every MNIST curve
    python -m experiments reproduce --preset quick  toy and four MNIST curves

The exit code is 0 if each of our own claims held.
"""

import dataclasses
from pathlib import Path

from matplotlib.figure import Figure

from experiments.common.harness.plots import legend_outside, panels
from experiments.common.harness.results import Result
from experiments.paper import mnist, toy
from experiments.paper.mnist import Config as MnistConfig
from experiments.paper.toy import Config as ToyConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of both experiments.

    Attributes:
      toy: the three quadratics.
      mnist: the digits.
    """

    toy: ToyConfig = dataclasses.field(default_factory=ToyConfig)
    mnist: MnistConfig = dataclasses.field(default_factory=MnistConfig)


PRESETS = {
    "quick": Config(mnist=mnist.PRESETS["quick"]),
    "tiny": Config(
        toy=dataclasses.replace(toy.Config(), num_steps=200, settle_steps=200),
        mnist=mnist.PRESETS["tiny"],
    ),
}

_TOY, _MNIST = "toy: ", "mnist: "


def run(config: Config, checkpoints: Path | None = None) -> Result:
    """Runs both and joins what they found; the digits keep checkpoints."""
    parts = {_TOY: toy.run(config.toy), _MNIST: mnist.run(config.mnist, checkpoints)}
    curves = {
        prefix + name: curve
        for prefix, part in parts.items()
        for name, curve in part.curves.items()
    }
    claims = [claim for part in parts.values() for claim in part.claims]
    digits = parts[_MNIST]
    return Result(
        curves,
        tuple(claims),
        parts[_TOY].extra,
        partial=digits.partial,
        data=digits.data,
    )


def plot(result: Result) -> Figure:
    """Draws the toy problem beside the digits."""
    figure, (left, middle, right) = panels(3)
    toy.draw(left, _part(result, _TOY))
    digits = _part(result, _MNIST)
    mnist.draw_accuracy(middle, digits)
    mnist.draw_gradient(right, digits)
    legend_outside(figure, middle)
    return figure


def _part(result: Result, prefix: str) -> Result:
    curves = {
        name.removeprefix(prefix): curve
        for name, curve in result.curves.items()
        if name.startswith(prefix)
    }
    return result._replace(curves=curves)
