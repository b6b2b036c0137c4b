"""Byzantine attacks on the majority vote: lie where a vote decides, and only there.

A vote forgets by how much a worker is wrong, so a hostile worker has one choice in each
coordinate: tell the truth, or lie. Both attacks here lie against the mean gradient of
the honest, and only where the count is close. `near_tie_collusion` guesses from the
honest gradients where that is; `pivotal_votes` also knows the noise that everybody will
add, and so which lies decide: it does the harm of lying always with the fewest lies.
They count heads, and refuse ``worker_weights``.

A lie is sent as an infinity of the right sign, which no noise turns round.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.attacks.byzantine import Scene, Workers, attack, check_key, check_workers
from jaxmedian.kernels import ballots
from jaxmedian.kernels.ballots import TieRule
from jaxmedian.kernels.rows import add_up
from jaxmedian.noise import Noise, keys
from jaxmedian.transforms.draws import (
    Draws,
    LeafDraws,
    check_noise,
    draw,
    follows_gradients,
)
from jaxmedian.workers import collectives
from jaxmedian.workers.collectives import AxisName, PyTree


def near_tie_collusion(
    workers: Workers,
    key: keys.Key | None = None,
    *,
    margin: int | None = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the hostile vote together where the honest are nearly tied.

    .. math:: |\sum_{i \in H} \mathrm{sign}(g_{ij})| \le \mathrm{margin}

    In such a coordinate j all of them vote against the sign of the honest mean; in the
    others each sends its own gradient, and so is outvoted no more often than an honest
    worker. f of them turn every noise-free vote within a margin below f.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      key: for workers drawn each step.
      margin: the largest honest count, either way, at which they lie; by default the
        number of hostile workers present.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform; see `sign_flip` for masks and errors. Where the honest mean is
      0 the hostile send their own gradients.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> tx = jm.attacks.near_tie_collusion([3])
    >>> grads = jnp.array([[1., 1.], [2., 2.], [-1., 3.], [1., 1.]])
    >>> tx.update(grads, tx.init(None))[0][3].tolist()
    [-inf, 1.0]
    """
    if margin is not None and (
        isinstance(margin, bool) or not isinstance(margin, int | np.integer)
    ):
        raise TypeError(f"`margin` must be an int; got {margin!r}.")
    if margin is not None and margin < 0:
        raise ValueError(f"`margin` must be >= 0; got {margin}.")

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        limit = scene.num_hostile if margin is None else np.int32(margin)
        sent = []
        for rows in leaves:
            votes = _cast(rows, LeafDraws(), "zero")
            tally = _tally(votes, scene.honest, scene)
            lie = _lie(rows, scene)
            lies = (jnp.abs(tally) <= limit) & (lie != 0)
            sent.append(jnp.where(lies[None], _certain(lie, rows)[None], rows))
        return sent

    return attack("near_tie_collusion", workers, key, craft, axis_name, weighted=False)


def pivotal_votes(
    workers: Workers,
    noise: Noise | None = None,
    key: keys.Key | None = None,
    *,
    ties: TieRule = "zero",
    choice_key: keys.Key | None = None,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Makes the hostile lie only where that decides the vote to come.

    Who knows the seed of a noisy vote knows every bit before it is cast. The hostile
    ask in each coordinate how the vote ends if all of them vote against the sign of the
    honest mean. If the truth ends it the same way they tell the truth, else as many of
    them lie as that takes: those who would vote the other way before those who would
    abstain, of the lowest numbers first. So the vote ends in every coordinate as if
    they had all lied always, with the fewest lies: noise hides who lies, and does not
    undo the lies.

    Args:
      workers: numbers of the hostile, or how many to draw each step; see `sign_flip`.
      noise: that of the `majority_vote` to come, with a number or schedule as scale
        (lies are infinite, and a scale that follows the gradients would follow them).
      key: that of the `majority_vote` to come.
      ties: that of the `majority_vote` to come.
      choice_key: for workers drawn each step.
      axis_name: mesh axis over which workers are spread inside `jax.shard_map`.

    Returns:
      A worker transform to stand right before ``majority_vote(noise, key, ties=ties)``;
      see `sign_flip` for masks and errors.

    >>> import jax.numpy as jnp, jaxmedian as jm
    >>> noise, key = jm.noise.gaussian(1.0), 0
    >>> tx = jm.attacks.pivotal_votes([2], noise, key)
    >>> grads = jnp.ones((3, 1000))
    >>> sent, _ = tx.update(grads, tx.init(None))
    >>> 0.2 < float((sent[2] < 0).mean()) < 0.4  # in the others the truth is no worse
    True
    """
    chosen = check_workers("pivotal_votes", workers)
    if ties not in ballots.TIE_RULES:
        raise ValueError(
            f"`ties` must be one of {', '.join(map(repr, ballots.TIE_RULES))}; got "
            f"{ties!r}."
        )
    if noise is not None:
        check_noise("pivotal_votes", noise)
        if follows_gradients(noise):
            raise ValueError(
                "`noise` of `pivotal_votes` must have a number or a schedule as scale: "
                "lies are infinite, a scale that follows the gradients would follow "
                "them, and the vote would draw another noise than was foreseen."
            )
    vote_key = check_key(
        "pivotal_votes", key, needed=noise is not None or ties == "random"
    )
    check_key("pivotal_votes", choice_key, needed=chosen.numbers is None)

    def craft(leaves: list[jax.Array], scene: Scene) -> list[jax.Array]:
        draws = Draws()
        if vote_key is not None:
            assert scene.state is not None
            state = keys.KeyState(scene.state.count, vote_key)
            draws, _ = draw(
                noise, ties == "random", state, scene.updates, scene.population
            )
        return [
            _pivotal_rows(rows, draws.of_leaf(i), scene, ties)
            for i, rows in enumerate(leaves)
        ]

    # The state counts steps for the vote's key too, whoever draws the workers.
    own_key = vote_key if choice_key is None else choice_key
    return attack(
        "pivotal_votes",
        workers,
        own_key,
        craft,
        axis_name,
        draws=own_key is not None,
        weighted=False,
    )


def _pivotal_rows(
    rows: jax.Array, draws: LeafDraws, scene: Scene, ties: TieRule
) -> jax.Array:
    """Returns the rows of the local workers with the lies that decide."""
    votes = _cast(rows, draws, ties)
    honest = _tally(votes, scene.honest, scene)
    truth = honest + _tally(votes, scene.hostile, scene)
    lie = _lie(rows, scene)
    tie_bits = draws.tie_bits(rows.shape[1])

    def outcome(tally: jax.Array) -> jax.Array:
        return ballots.decide(tally, ties=ties, tie_bits=tie_bits, anybody=None)

    all_lie = honest + scene.num_hostile * lie
    wanted = outcome(jnp.where(lie == 0, truth, all_lie))
    population = scene.population
    hostile = collectives.gather(scene.hostile, population.axis_name)
    all_votes = collectives.gather(votes, population.axis_name)

    def consider(turn: jax.Array, state: PyTree) -> PyTree:
        tally, lies = state
        worker = turn % np.int32(population.num_workers)
        change = lie - all_votes[worker].astype(jnp.int32)
        change = jnp.where(hostile[worker], change, np.int32(0))
        # First who turns a vote round, which counts twice, then who casts a new one.
        size = jnp.where(turn < population.num_workers, np.int32(2), np.int32(1))
        is_needed = (outcome(tally) != wanted) & (change * lie == size)
        tally = jnp.where(is_needed, tally + change, tally)
        return tally, lies.at[worker].set(lies[worker] | is_needed)

    nobody = all_votes != all_votes
    turns = 2 * population.num_workers
    _, lies = jax.lax.fori_loop(0, turns, consider, (truth, nobody))
    here = lies[population.numbers()]
    return jnp.where(here, _certain(lie, rows)[None], rows)


def _cast(rows: jax.Array, draws: LeafDraws, ties: TieRule) -> jax.Array:
    """Casts the true votes of the local workers, int8 ``[m, d]``."""
    return ballots.cast(rows, noise=draws.noise, ties=ties, zero_keys=draws.zero_keys)


def _tally(votes: jax.Array, counted: jax.Array, scene: Scene) -> jax.Array:
    """Adds up the votes of those counted, on all devices."""

    def vote(worker: int | jax.Array) -> jax.Array:
        return votes[worker].astype(jnp.int32) * counted[worker].astype(jnp.int32)

    return collectives.total(add_up(vote, votes.shape[0]), scene.population.axis_name)


def _lie(rows: jax.Array, scene: Scene) -> jax.Array:
    """Returns the vote against the honest mean: int32 ``[d]`` of -1, 0, +1."""
    return -ballots.sign_or(scene.mean(rows), np.int32(0))


def _certain(lie: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns a lie as a number whose sign no noise changes."""
    infinity = np.asarray(np.inf, rows.dtype)
    return jnp.where(lie > 0, infinity, -infinity)
