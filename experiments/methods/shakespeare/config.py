"""Settings of `shakespeare`, and its presets."""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.common.harness.options import Amounts, Count, Whole, tiny


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison.

    Attributes:
      text: a file of UTF-8 text; None invents a play.
      texts: a folder with a file NAME.txt for each worker, or a folder NAME/man1 and
        so on of manual pages (needs pypandoc_binary), in place of a text.
      split: who reads what of a text: "contiguous" parts, or parts of "speakers".
      fold_rare: characters that occur less often in training become one.
      contenders: names of the curves; all by default.
      num_workers: M.
      num_seeds: runs of each contender; a seed sets network, noise and windows.
      num_steps: steps of every run; the rate warms up and falls to a tenth by a cosine.
      tune_steps: steps of the runs that choose settings.
      warm_up: steps over which the rate rises.
      batch_size: windows per worker and step.
      one_worker_batch: windows of the one worker who reads everything.
      model: "transformer", or "perceptron", which is small: one hidden layer.
      context: characters that the model looks back on.
      layers: of the transformer.
      heads: of its attention.
      hidden: its channels, or the perceptron's hidden units.
      decay: weight decay.
      lion_b2: decay of Lion's momentum, on the mean and before votes.
      chunk: steps between two measurements.
      windows: windows to measure on.
      sample: characters written before and after training.
      adam_rates: learning rates that AdamW chooses from.
      lion_rates: learning rates that Lion on the mean chooses from.
      vote_rates: learning rates that votes choose from.
      average_rates: learning rates that the average of signs chooses from.
      scales: b that noise of one scale chooses from.
      leaf_factors: b over the median of the workers' largest entries of a leaf.
      coordinate_factors: b over the running root mean square of each coordinate.
    """

    text: Path | None = None
    texts: Path | None = None
    split: Literal["contiguous", "speakers"] = "contiguous"
    fold_rare: Whole = 0
    contenders: tuple[str, ...] = ()
    num_workers: Count = 8
    num_seeds: Count = 3
    num_steps: Count = 2000
    tune_steps: Count = 500
    warm_up: Whole = 100
    batch_size: Count = 2
    one_worker_batch: Count = 12
    model: Literal["transformer", "perceptron"] = "transformer"
    context: Count = 64
    layers: Count = 4
    heads: Count = 4
    hidden: Count = 128
    decay: float = 0.1
    lion_b2: float = 0.99
    chunk: Count = 100
    windows: Count = 400
    sample: Count = 300
    adam_rates: Amounts = (1e-3, 2e-3, 4e-3)
    lion_rates: Amounts = (1e-4, 3e-4, 1e-3)
    vote_rates: Amounts = (1e-4, 3e-4, 1e-3)
    average_rates: Amounts = (1e-3, 2e-3, 4e-3)
    scales: Amounts = (1e-4, 3e-4, 1e-3)
    leaf_factors: Amounts = (0.03, 0.1, 0.3)
    coordinate_factors: Amounts = (0.25, 0.5, 1.0)


PRESETS = {
    "quick": Config(
        num_seeds=1,
        num_steps=300,
        tune_steps=100,
        warm_up=20,
        layers=2,
        hidden=32,
        adam_rates=(4e-3,),
        lion_rates=(1e-3, 2e-3),
        vote_rates=(1e-3, 2e-3),
        average_rates=(2e-3, 4e-3),
    ),
    "perceptron": Config(
        model="perceptron",
        num_steps=800,
        tune_steps=800,
        warm_up=20,
        batch_size=32,
        one_worker_batch=256,
        context=8,
        hidden=96,
        decay=0.0,
        windows=4000,
        adam_rates=(0.01, 0.03, 0.1),
        lion_rates=(1e-3, 3e-3, 5e-3),
        vote_rates=(1e-3, 3e-3, 5e-3, 8e-3),
        average_rates=(1e-3, 3e-3, 5e-3),
        leaf_factors=(0.01, 0.03, 0.1),
        coordinate_factors=(0.5, 1.0, 2.0, 4.0),
    ),
    "tiny": tiny(
        Config(),
        contenders=("mean + AdamW", "noisy Lion vote, b per leaf"),
        num_workers=2,
        tune_steps=2,
        warm_up=1,
        one_worker_batch=2,
        context=8,
        layers=1,
        heads=2,
        windows=4,
        sample=5,
    ),
}
