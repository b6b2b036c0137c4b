"""Settings of the attacks on training runs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; every rule meets every attack in every of its settings.

    Attributes:
      rules: names of the rules; by default all, but for noise before rules that look at
        distances.
      attacks: names of the attacks; all by default.
      data: "digits8x8", "mnist5k", "mnist" or "fashion_mnist".
      alphas: of the Dirichlet splits of the data among the honest workers; claims speak
        of the first.
      hostile: how many workers are hostile, and how many robust rules are told; claims
        speak of the first.
      num_workers: M.
      num_seeds: runs of each setting.
      num_steps: steps of every run; the learning rate falls to 0 by a cosine.
      batch_size: samples a worker and step.
      hidden: units of the hidden layer.
      vote_rates: learning rates that votes choose from; one by default.
      mean_rates: learning rates that all others choose from; one by default.
      scales: b that noisy rules choose from.
      radii: that centered clipping chooses from, in norms of a gradient.
    """

    rules: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    data: str = "digits8x8"
    alphas: tuple[float, ...] = (0.1, 1.0)
    hostile: tuple[int, ...] = (2, 4)
    num_workers: int = 11
    num_seeds: int = 5
    num_steps: int = 150
    batch_size: int = 16
    hidden: int = 32
    vote_rates: tuple[float, ...] = (0.03,)
    mean_rates: tuple[float, ...] = (1.0,)
    scales: tuple[float, ...] = (0.01, 0.1)
    radii: tuple[float, ...] = (0.3, 3.0)

    def __post_init__(self) -> None:
        most = (self.num_workers - 1) // 2
        if not self.hostile or any(not 1 <= f <= most for f in self.hostile):
            raise ValueError(
                f"`hostile` must be numbers from 1 to {most}, a minority of "
                f"{self.num_workers} workers; got {self.hostile}."
            )
        if not self.alphas:
            raise ValueError("`alphas` must name at least one split.")


PRESETS = {
    "quick": Config(
        rules=(
            *("mean", "vote", "noisy vote", "noisy vote, systematic"),
            *("median", "noisy median", "noisy median, systematic"),
            *("median after bucketing", "trimmed mean", "multi-Krum"),
        ),
        hostile=(2,),
        alphas=(0.1,),
    ),
    "mnist5k": Config(
        rules=(
            *("mean", "vote", "noisy vote", "noisy vote, systematic"),
            *("vote after bucketing", "median", "noisy median"),
            *("noisy median, systematic", "median after bucketing"),
            *("trimmed mean", "noisy trimmed mean, systematic"),
            *("trimmed mean after bucketing", "mean around median"),
            *("geometric median", "geometric median after bucketing", "Krum"),
            *("multi-Krum", "multi-Krum after bucketing", "Bulyan"),
            "centered clipping",
        ),
        data="mnist5k",
        alphas=(0.1,),
        hostile=(2,),
        num_steps=300,
        batch_size=32,
        vote_rates=(0.01,),
        mean_rates=(0.3,),
    ),
    "tiny": Config(
        rules=("noisy vote, systematic",),
        attacks=("label flip", "pivotal votes"),
        hostile=(1,),
        alphas=(1.0,),
        num_workers=5,
        num_seeds=2,
        num_steps=2,
        hidden=4,
        scales=(0.1,),
    ),
}
