"""The best b for skewed gradients, whose spread over workers is dialled."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import jaxmedian as jm
from experiments.common.harness.options import Amounts, Count, Seed
from experiments.common.harness.results import Claim, Curves

Array = npt.NDArray[np.float64]
COUPLINGS = jm.noise.COUPLINGS
LAWS = tuple(jm.noise.LAWS)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the skewed gradients and of the digits.

    Attributes:
      num_workers: M of the medians, one choice each.
      vote_workers: M of the votes, odd.
      heterogeneities: of the votes: standard deviation over workers / mean.
      num_coordinates: coordinates that share a b.
      small_scale: a b too small to cure wrong votes, in standard deviations.
      data: name or path of the images, as `TrainingConfig` takes it.
      data_dir: folder in which archives of data are looked for first.
      digit_workers: M of the digits; each holds one class.
      sample_steps: steps of SGD by the mean, at whose end gradients are sampled.
      mean_rate: its step.
      sample_size: coordinates sampled.
      train_steps: steps of the runs that try the choice.
      learning_rate: delta of the vote on digits.
      hidden: units of the hidden layer.
      seed: of everything.
    """

    num_workers: tuple[Count, ...] = (3, 5, 11, 31)
    vote_workers: Count = 11
    heterogeneities: Amounts = (0.5, 1, 2, 4, 8, 16)
    num_coordinates: Count = 16
    small_scale: float = 0.3
    data: str = "mnist5k"
    data_dir: Path | None = None
    digit_workers: Count = 10
    sample_steps: Count = 25
    mean_rate: float = 0.1
    sample_size: Count = 200
    train_steps: Count = 500
    learning_rate: float = 1e-3
    hidden: Count = 128
    seed: Seed = 0


PRESETS = {
    "quick": Config(num_workers=(3, 11), num_coordinates=8, train_steps=300),
    "tiny": Config(
        num_workers=(3, 5),
        vote_workers=5,
        heterogeneities=(0.5, 8),
        num_coordinates=2,
        sample_steps=2,
        sample_size=20,
        train_steps=2,
        hidden=4,
    ),
}


def skewed_gradients(
    num_workers: int, num_coordinates: int, heterogeneity: float, seed: int
) -> Array:
    """Draws gradients [M, coordinates] of mean 1 and a given standard deviation.

    Exponential over the workers, then shifted and scaled, so that in each coordinate
    the mean over workers is 1 and their standard deviation is the heterogeneity.
    """
    draws = np.random.default_rng(seed).exponential(size=(num_workers, num_coordinates))
    centred = draws - draws.mean(axis=0)
    return 1 + heterogeneity * centred / centred.std(axis=0)


def medians(config: Config, law: str) -> dict[str, np.ndarray]:
    """Chooses b for the median of each M; all in standard deviations over workers."""
    found = [
        jm.theory.best_scale(
            skewed_gradients(m, config.num_coordinates, 1.0, config.seed), law
        )
        for m in config.num_workers
    ]
    return {"workers": np.array(config.num_workers), **_columns(found)}


def votes(config: Config, law: str) -> dict[str, np.ndarray]:
    """Chooses b for the vote at each heterogeneity, and tries too small a b as well."""
    samples = {
        h: skewed_gradients(config.vote_workers, config.num_coordinates, h, config.seed)
        for h in config.heterogeneities
    }
    found = [jm.theory.best_scale(u, law, "vote") for u in samples.values()]
    small = {
        f"{coupling}_small": np.array(
            [
                _right(
                    u[:, wrong_votes(u)],
                    jm.noise.Noise(law, config.small_scale * h, coupling),
                )
                for h, u in samples.items()
            ]
        )
        for coupling in COUPLINGS
    }
    silent = [_right(u, jm.noise.Noise(law, 0.0)) for u in samples.values()]
    return {
        "heterogeneity": np.array(config.heterogeneities),
        "no_noise": np.array(silent),
        **_columns(found),
        **small,
    }


def _columns(found: Sequence[jm.theory.scales.BestScale]) -> dict[str, np.ndarray]:
    """Tabulates choices: the best b of each coupling, and what it achieves."""
    return {
        "step": np.arange(len(found)),
        **{
            f"{coupling}_{field}": np.array(
                [getattr(getattr(best, coupling), field) for best in found]
            )
            for coupling in COUPLINGS
            for field in ("scale", "value")
        },
    }


def wrong_votes(u: Array) -> npt.NDArray[np.bool_]:
    """Says in which coordinates the vote without noise misses the sign of the mean."""
    return np.sign(np.sign(u).sum(axis=0)) != np.sign(u.mean(axis=0))


def _right(u: Array, noise: jm.noise.Noise) -> float:
    """Averages P(vote = sign(mean)) over the coordinates; NaN for none."""
    if not u.shape[1]:
        return float("nan")
    vote = jm.theory.vote_probability(u, noise)
    return float(np.mean(np.where(u.mean(axis=0) > 0, vote.plus, vote.minus)))


# --- what was found -------------------------------------------------------------------


def median_claim(curves: Curves) -> Claim:
    """Compares the errors of the two couplings, each at its best b."""
    ratios = np.concatenate(
        [
            curves[f"median, {law}"]["systematic_value"]
            / curves[f"median, {law}"]["independent_value"]
            for law in LAWS
        ]
    )
    scales = curves["median, gaussian"]["independent_scale"]
    return Claim(
        "Median: systematic noise at its best b never has the larger error",
        f"{ratios.min():.2f} to {ratios.max():.2f} of the independent error; Gaussian "
        f"independent b = {scales.min():.2f} to {scales.max():.2f} sd",
        bool((ratios <= 1 + 1e-9).all()),
    )


def vote_claims(config: Config, curves: Curves) -> tuple[Claim, ...]:
    """Judges what noise does at the widest spread, and which coupling is better."""
    table = {
        name: np.stack([curves[f"vote, {law}"][name] for law in LAWS])
        for name in curves["vote, gaussian"]
    }
    independent, systematic = table["independent_value"], table["systematic_value"]
    silent = table["no_noise"]
    widest = config.heterogeneities[-1]
    small = table["systematic_small"][:, -1] - table["independent_small"][:, -1]
    return (
        Claim(
            f"Vote: at spread {widest:g} noise makes it right more often",
            f"P(right) {silent[0, -1]:.2f} without, {independent[:, -1].min():.2f} to "
            f"{independent[:, -1].max():.2f} independent, {systematic[:, -1].min():.2f}"
            f" to {systematic[:, -1].max():.2f} systematic",
            bool((independent[:, -1] > silent[:, -1]).all()),
        ),
        Claim(
            "Vote: systematic noise at its best b is never less often right",
            f"{(systematic > independent + 1e-9).sum()} better, "
            f"{(systematic < independent - 1e-9).sum()} worse of {systematic.size}",
            bool((systematic >= independent - 1e-9).all()),
        ),
        Claim(
            f"Vote: where it was wrong, at spread {widest:g}, b = "
            f"{config.small_scale:g} sd, systematic noise is right less often",
            f"P(right) {table['independent_small'][:, -1].mean():.3f} independent, "
            f"{table['systematic_small'][:, -1].mean():.3f} systematic (mean of laws)",
            bool((small < 0).all()) if np.isfinite(small).all() else None,
        ),
    )
