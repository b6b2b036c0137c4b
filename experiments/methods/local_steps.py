"""Local steps: accuracy against the number of steps between two aggregations.

Claim: on heterogeneous data the vote and the median do not recover by local steps, as
in federated averaging: more of them carry the workers further apart, not nearer to a
vote that follows the mean. Noise helps at every K as it does at K = 1.

    python -m experiments local_steps                 8x8 digits, K = 1, 5, 20
    python -m experiments local_steps --preset quick  K = 1 and 5, four rules

Expect (5 seeds, one class a worker, 200 aggregations), test accuracy at K = 1, 5, 20:
mean .966, .968, .924; vote .302, .316, .287, with noise .907, .885, .787, systematic
.926, .917, .878; median .476, .456, .388, with noise .912, .897, .877, systematic .908,
.950, .887. With the server's rate tuned, local steps gain next to nothing even for the
mean; at K > 1 it takes the largest on offer. Under 3 minutes of CPU; the quick preset
takes half a minute.

Workers send pseudo-gradients in units of the gradient, (x - x^K) / (K local_rate), so
that K = 1 is the algorithm without local steps and one scale b fits every K.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.claims import Claim
from experiments.common.harness.plots import draw_band, panels
from experiments.common.harness.results import Result
from experiments.common.training.rules import (
    PAPER_RULES,
    build_rule,
    chosen_rules,
    rule_grid,
)
from experiments.common.training.trainer import (
    Build,
    Chosen,
    Problem,
    Runs,
    Settings,
    accuracies,
    load_problem,
    padded,
    report,
    serve,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison; every rule is tuned at every K.

    Attributes:
      rules: names of the rules to compare; those of the paper by default.
      local_steps: K, each a program of its own.
      data: "digits8x8", "mnist5k", "mnist" or "fashion_mnist".
      num_workers: M; workers hold exclusive classes.
      f: hostile workers that robust rules are told to withstand; there are none.
      num_seeds: runs of each setting.
      num_steps: aggregations; the server's rate falls to 0 by a cosine.
      local_rate: of a worker's own steps of SGD.
      batch_size: samples a worker and local step.
      hidden: units of the hidden layer.
      vote_rates: server's rates that votes choose from.
      mean_rates: server's rates that mean and medians choose from, in units of the
        pseudo-gradient: K * local_rate is federated averaging.
      scales: b that noisy rules choose from.
      radii: that centered clipping chooses from, in norms of a pseudo-gradient.
      chunk: aggregations between two measurements.
    """

    rules: tuple[str, ...] = PAPER_RULES
    local_steps: tuple[int, ...] = (1, 5, 20)
    data: str = "digits8x8"
    num_workers: int = 10
    f: int = 2
    num_seeds: int = 5
    num_steps: int = 200
    local_rate: float = 0.1
    batch_size: int = 16
    hidden: int = 32
    vote_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    mean_rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    scales: tuple[float, ...] = (0.03, 0.1)
    radii: tuple[float, ...] = (0.3, 3.0)
    chunk: int = 20


PRESETS = {
    "quick": Config(
        rules=("mean", "vote", "noisy vote, systematic", "median"),
        local_steps=(1, 5),
        num_steps=100,
        vote_rates=(0.01, 0.03),
        mean_rates=(1.0, 3.0),
    ),
    "tiny": Config(
        rules=("mean",),
        local_steps=(2,),
        num_seeds=2,
        num_steps=2,
        hidden=4,
        mean_rates=(0.3,),
        chunk=1,
    ),
}


def run(config: Config) -> Result:
    """Trains every rule at every K; keeps each one's best setting."""
    rules = chosen_rules(config.rules)
    if config.num_steps % config.chunk:
        raise ValueError(
            f"--num-steps must be a multiple of --chunk; got {config.num_steps} and "
            f"{config.chunk}."
        )
    problem = load_problem(config.data, config.hidden, config.num_seeds)
    split = jm.splits.by_label(np.asarray(problem.train["labels"]), config.num_workers)
    reached: dict[str, dict[int, Chosen]] = {}
    for name, rule in rules.items():
        print(f"{name} ({len(reached) + 1} of {len(rules)})")
        settings = rule_grid(
            rule, config.vote_rates, config.mean_rates, config.scales, config.radii
        )
        build = build_rule(rule, config.num_steps, config.num_workers, config.f)
        reached[name] = {
            number: _train(config, problem, split, build, settings, number).chosen()
            for number in config.local_steps
        }
    found = {
        f"{rule} | K = {number}": chosen
        for rule, row in reached.items()
        for number, chosen in row.items()
    }
    curves = {name: chosen.curve for name, chosen in found.items()}
    best = {name: chosen.setting for name, chosen in found.items()}
    return Result(curves, _claims(config, reached), {"chosen": best})


def _train(
    config: Config,
    problem: Problem,
    split: jm.splits.Split,
    build: Build,
    settings: Settings,
    num_local: int,
) -> Runs:
    """Trains one rule at one K over settings and seeds, as one program."""
    indices, sizes = padded(split, len(problem.train["labels"]))

    @jax.jit
    def train_all(settings: Any, params: Any, keys: Any, train: Any) -> Any:
        next_batch = serve(train, indices, sizes, num_local * config.batch_size)

        def train_one(setting: Any, params: Any, key: jax.Array) -> Any:
            optimizer = build(key=key, **setting)
            step = _build_step(config, problem, optimizer, next_batch, num_local, key)

            def measure_after(carry: Any, start: jax.Array) -> tuple[Any, Any]:
                carry, _ = jax.lax.scan(step, carry, start + jnp.arange(config.chunk))
                row = accuracies(problem, carry[0])
                return carry, row | {"step": start + config.chunk}

            starts = jnp.arange(0, config.num_steps, config.chunk)
            carry = params, optimizer.init(params)
            return jax.lax.scan(measure_after, carry, starts)[1]

        over_seeds = jax.vmap(train_one, in_axes=(None, 0, 0))
        return jax.vmap(over_seeds, in_axes=(0, None, None))(settings, params, keys)

    traced = {name: jnp.asarray(v, jnp.float32) for name, v in settings.items()}
    metrics = train_all(traced, problem.params, problem.keys, problem.train)
    return Runs(settings, jax.tree.map(np.asarray, metrics))


def _build_step(
    config: Config,
    problem: Problem,
    optimizer: optax.GradientTransformation,
    next_batch: Callable[..., Any],
    num_local: int,
    key: jax.Array,
) -> Callable[..., tuple[Any, None]]:
    """Builds one aggregation: local steps, pseudo-gradients, the server's update."""
    local_updates = jm.worker_updates(
        problem.model.loss, optax.sgd(config.local_rate), num_local, batch_per_step=True
    )

    def step(carry: Any, count: jax.Array) -> tuple[Any, None]:
        params, state = carry
        batch = next_batch(jax.random.fold_in(key, count), count)
        batch = jax.tree.map(
            lambda leaf: leaf.reshape(len(leaf), num_local, -1, *leaf.shape[2:]), batch
        )
        pseudo_grads = jax.tree.map(
            lambda moved: -moved / (num_local * config.local_rate),
            local_updates(params, batch),
        )
        updates, state = optimizer.update(pseudo_grads, state, params)
        return (jm.apply_updates(params, updates), state), None

    return step


def _claims(config: Config, reached: dict[str, dict[int, Chosen]]) -> tuple[Claim, ...]:
    claims = [
        Claim(
            f"{rule}: test accuracy after {config.num_steps} aggregations",
            "-",
            "; ".join(
                f"K = {number}: {report(chosen.last)}" for number, chosen in row.items()
            ),
            None,
        )
        for rule, row in reached.items()
    ]
    judged = config.num_steps >= 100
    for rule in ("vote", "median"):
        noisy = f"noisy {rule}, systematic"
        if {rule, noisy} <= set(reached):
            ahead = {
                number: (
                    reached[noisy][number].last - reached[rule][number].last
                ).mean()
                for number in config.local_steps
            }
            claims.append(
                Claim(
                    f"Noise helps the {rule} at every K",
                    "-",
                    ", ".join(f"by {gain:.3f} at {k}" for k, gain in ahead.items()),
                    bool(min(ahead.values()) > 0) if judged else None,
                )
            )
    return tuple(claims)


def plot(result: Result) -> Figure:
    """Draws test accuracy against aggregations, one panel for each K."""
    numbers = list(dict.fromkeys(name.split("K = ")[1] for name in result.curves))
    figure, axes = panels(len(numbers))
    for ax, number in zip(axes, numbers, strict=True):
        for name, curve in result.curves.items():
            rule, own = name.split(" | K = ")
            if own == number:
                draw_band(ax, curve, "test_accuracy", rule)
        ax.set_ylim(0, 1)
        ax.set_title(f"test accuracy, K = {number}")
        ax.set_xlabel("aggregations")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure
