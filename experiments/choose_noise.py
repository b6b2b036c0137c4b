"""Which b is best: against the number of workers, heterogeneity, law, and for digits.

Claim: `jm.theory.best_scale` answers from per-worker gradients alone. The median wants
a share of the workers' spread, and systematic noise at its own best b never has the
larger error. The vote needs no noise while the spread is at most the mean;
beyond, noise makes it right more often, and systematic noise more so, but where b is
too small systematic noise makes a wrong vote surer. On MNIST, one class a worker, the b
that gives the vote the steepest expected descent on 200 coordinates of real gradients,
sampled after 25 steps of plain SGD, lets signSGD train where it stalls without.

    python -m experiments choose_noise

Expect best Gaussian b of .14 (M = 3) to .63 (M = 31) standard deviations for the
median, and .65 to .97 of its error with systematic noise; digits: b = .027 independent
(.088 of the steepest descent), .032 systematic (.132; without noise it is negative),
and test accuracy .894 with the latter after 500 steps, .125 without noise. One to two
minutes on two cores.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.claims import Claim
from experiments.common.digits import Digits, load_mnist5k
from experiments.common.models import Classifier, mnist_network
from experiments.common.plots import panels
from experiments.common.results import Curves, Result

Array = npt.NDArray[np.float64]

COUPLINGS = ("independent", "systematic")
LAWS = ("gaussian", "laplace", "logistic", "uniform")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the skewed gradients and of the digits.

    Attributes:
      num_workers: M of the medians, one choice each.
      vote_workers: M of the votes, odd.
      heterogeneities: of the votes: standard deviation over workers / mean.
      num_coordinates: coordinates that share a b.
      small_scale: a b too small to cure wrong votes, in standard deviations.
      digit_workers: M of the digits; each holds one class.
      sample_steps: steps of SGD by the mean, at whose end gradients are sampled.
      mean_rate: its step.
      sample_size: coordinates sampled.
      train_steps: steps of the runs that try the choice.
      learning_rate: delta of the vote on digits.
      hidden: units of the hidden layer.
      seed: of everything.
    """

    num_workers: tuple[int, ...] = (3, 5, 11, 31)
    vote_workers: int = 11
    heterogeneities: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16)
    num_coordinates: int = 16
    small_scale: float = 0.3
    digit_workers: int = 10
    sample_steps: int = 25
    mean_rate: float = 0.1
    sample_size: int = 200
    train_steps: int = 500
    learning_rate: float = 1e-3
    hidden: int = 128
    seed: int = 0


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


class Trial(NamedTuple):
    """What signSGD with the chosen noise, and without, reached on the digits."""

    best: jm.theory.scales.BestScale
    accuracy: dict[str, float]  # test accuracy without noise, and with the best


def run(config: Config) -> Result:
    """Chooses b for skewed gradients and for the digits, and tries the latter."""
    curves: dict[str, dict[str, np.ndarray]] = {}
    for law in LAWS:
        print(f"{law}: medians of {config.num_workers}, votes of {config.vote_workers}")
        curves[f"median, {law}"] = _medians(config, law)
        curves[f"vote, {law}"] = _votes(config, law)
    curves["digits"], trial = _digits(config)
    claims = (
        _median_claim(curves),
        *_vote_claims(config, curves),
        *_digit_claims(config, trial),
    )
    return Result(curves, claims, {"digits": _summary(trial)})


# --- skewed gradients -----------------------------------------------------------------


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


def _medians(config: Config, law: str) -> dict[str, np.ndarray]:
    """Chooses b for the median of each M; all in standard deviations over workers."""
    found = [
        jm.theory.best_scale(
            skewed_gradients(m, config.num_coordinates, 1.0, config.seed), law
        )
        for m in config.num_workers
    ]
    return {"workers": np.array(config.num_workers), **_columns(found)}


def _votes(config: Config, law: str) -> dict[str, np.ndarray]:
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


def descent(u: Array, noise: jm.noise.Noise) -> float:
    """Computes the expected descent of a vote, as a share of the steepest."""
    mean = u.mean(axis=0)
    vote = jm.theory.vote_probability(u, noise)
    return float(mean @ (vote.plus - vote.minus) / np.abs(mean).sum())


# --- digits ---------------------------------------------------------------------------


def _digits(config: Config) -> tuple[dict[str, np.ndarray], Trial]:
    """Samples gradients where the mean goes, chooses a noise, and trains with it."""
    digits = load_mnist5k(seed=config.seed)
    model = mnist_network(config.seed, config.hidden)
    mean = optax.chain(jm.worker_mean(), optax.sgd(config.mean_rate))
    measured = _train(config, model, digits, mean, config.sample_steps)
    sample = np.asarray(measured.metrics["sample"][-1], np.float64)
    best = jm.theory.best_scale(sample, "gaussian", "descent")
    print(f"digits: best b = {best.scale:.4f} ({best.coupling})")
    trials = {
        "no noise": jm.noise.gaussian(0.0),
        "best noise": jm.noise.gaussian(best.scale, best.coupling),
    }
    test = {"images": digits.test_images, "labels": digits.test_labels}
    accuracy = {}
    for name, noise in trials.items():
        key = jax.random.key(config.seed)
        optimizer = jm.noisy_sign_sgd(config.learning_rate, noise, key)
        end = _train(config, model, digits, optimizer, config.train_steps)
        accuracy[name] = float(model.accuracy(end.params, test))
    scales = np.geomspace(1e-4, 1.0, 41)
    curve = {"step": np.arange(len(scales)), "scale": scales} | {
        coupling: np.array(
            [descent(sample, jm.noise.gaussian(float(b), coupling)) for b in scales]
        )
        for coupling in COUPLINGS
    }
    return curve, Trial(best, accuracy)


def _train(
    config: Config,
    model: Classifier,
    digits: Digits,
    optimizer: optax.GradientTransformation,
    num_steps: int,
) -> jm.RunResult:
    """Trains with one class a worker and samples gradients at each chunk edge."""
    split = jm.splits.by_label(
        digits.train_labels, config.digit_workers, seed=config.seed
    )
    indices = split.indices[:, : split.sizes.min()]
    worker_data = {
        "images": jax.device_put(digits.train_images[indices]),
        "labels": jax.device_put(digits.train_labels[indices]),
    }

    def sample(params: Any, grads: Any, updates: Any) -> dict[str, jax.Array]:
        del params, updates
        size, key = config.sample_size, config.seed
        return {"sample": jm.diagnostics.sample_coordinates(grads, size, key)}

    return jm.run(
        model.loss,
        optimizer,
        model.params,
        jm.full_batch(worker_data),
        num_steps,
        key=config.seed,
        chunk=config.sample_steps,
        metrics=[sample],
        progress=sys.stderr.isatty(),
    )


def _summary(trial: Trial) -> dict[str, Any]:
    return {
        "scale": trial.best.scale,
        "coupling": trial.best.coupling,
        "test_accuracy": trial.accuracy,
    }


# --- what was found -------------------------------------------------------------------


def _median_claim(curves: Curves) -> Claim:
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
        "-",
        f"{ratios.min():.2f} to {ratios.max():.2f} of the independent error; Gaussian "
        f"independent b = {scales.min():.2f} to {scales.max():.2f} sd",
        bool((ratios <= 1 + 1e-9).all()),
    )


def _vote_claims(config: Config, curves: Curves) -> tuple[Claim, ...]:
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
            "-",
            f"P(right) {silent[0, -1]:.2f} without, {independent[:, -1].min():.2f} to "
            f"{independent[:, -1].max():.2f} independent, {systematic[:, -1].min():.2f}"
            f" to {systematic[:, -1].max():.2f} systematic",
            bool((independent[:, -1] > silent[:, -1]).all()),
        ),
        Claim(
            "Vote: systematic noise at its best b is never less often right",
            "-",
            f"{(systematic > independent + 1e-9).sum()} better, "
            f"{(systematic < independent - 1e-9).sum()} worse of {systematic.size}",
            bool((systematic >= independent - 1e-9).all()),
        ),
        Claim(
            f"Vote: where it was wrong, at spread {widest:g}, b = "
            f"{config.small_scale:g} sd, systematic noise is right less often",
            "-",
            f"P(right) {table['independent_small'][:, -1].mean():.3f} independent, "
            f"{table['systematic_small'][:, -1].mean():.3f} systematic (mean of laws)",
            bool((small < 0).all()) if np.isfinite(small).all() else None,
        ),
    )


def _digit_claims(config: Config, trial: Trial) -> tuple[Claim, ...]:
    best, (without, reached) = trial.best, trial.accuracy.values()
    judged = config.train_steps >= 300
    return (
        Claim(
            f"Digits: b chosen from {config.sample_size} coordinates of real gradients",
            "b = 1e-3 and 1e-5, tried out",
            f"independent b = {best.independent.scale:.3g}, "
            f"{best.independent.value:.3f} of the steepest descent; systematic b = "
            f"{best.systematic.scale:.3g}, {best.systematic.value:.3f}",
            None,
        ),
        Claim(
            "Digits: signSGD stalls below .35 without noise, is above .80 with that b",
            ".1 to .4 without, .85-.9 with noise",
            f"{without:.3f} without, {reached:.3f} with {best.coupling} b = "
            f"{best.scale:.3g}, {config.train_steps} steps",
            bool(reached > 0.8 and without < 0.35) if judged else None,
        ),
    )


def plot(result: Result) -> Figure:
    """Draws the best b of medians, what votes achieve, and the digits' choice."""
    figure, (left, middle, right) = panels(3)
    for index, law in enumerate(LAWS):
        for coupling, style in zip(COUPLINGS, (".-", ".--"), strict=True):
            label = law if coupling == "independent" else None
            median, vote = (
                result.curves[f"median, {law}"],
                result.curves[f"vote, {law}"],
            )
            options: Any = {"color": f"C{index}", "label": label}
            left.plot(median["workers"], median[f"{coupling}_scale"], style, **options)
            middle.plot(
                vote["heterogeneity"], vote[f"{coupling}_value"], style, **options
            )
    silent = result.curves["vote, gaussian"]
    middle.plot(silent["heterogeneity"], silent["no_noise"], "k:", label="no noise")
    left.set_title("median: best b / sd (dashed: systematic)")
    left.set_xlabel("M")
    middle.set_title("vote: P(right) at the best b")
    middle.set_xlabel("sd over workers / mean")
    for axis, ticks in (
        (left, result.curves["median, gaussian"]["workers"]),
        (middle, silent["heterogeneity"]),
    ):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    _draw_digits(right, result)
    return figure


def _draw_digits(axes: Axes, result: Result) -> None:
    curve = result.curves["digits"]
    for coupling in COUPLINGS:
        axes.plot(curve["scale"], curve[coupling], label=coupling)
    chosen = result.extra["digits"]["scale"]
    axes.axvline(chosen, color="grey", linestyle="--", label=f"chosen: {chosen:.3g}")
    axes.set_xscale("log")
    axes.set_xlabel("b")
    axes.axhline(0.0, color="black", linewidth=0.5)
    axes.set_title("digits: descent of the vote / steepest")
    axes.legend(fontsize=7)
