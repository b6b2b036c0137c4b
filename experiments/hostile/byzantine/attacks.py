"""The attacks that rules are tried with: one row of a table each.

A run computes one of them, chosen by a traced number, so that a rule is compiled once
for all attacks: `one_of`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

import jaxmedian as jm
from experiments.common.harness.misuse import Misuse
from experiments.common.training.rules import Rule

NextBatch = Callable[..., Any]  # (key, step) -> batch


class Scene(NamedTuple):
    """What an attack may know.

    Attributes:
      workers: numbers of the hostile.
      key: of what they draw.
      noise: ``(noise, key)`` of the rule to come; ``()`` of one without noise.
      rule: the rule to come, with what stands before it.
    """

    workers: tuple[int, ...]
    key: Any
    noise: tuple[()] | tuple[jm.noise.Noise, Any]
    rule: optax.GradientTransformation


class Attack(NamedTuple):
    """What the hostile do.

    Attributes:
      gradients: a factory of the worker transform; None if gradients are left alone.
      batches: ``(next_batch, workers, num_classes)`` -> what serves the workers
        instead.
      meets: whether it can be tried with a rule.
    """

    gradients: Callable[[Scene], optax.GradientTransformation] | None = None
    batches: Callable[[NextBatch, tuple[int, ...], int], NextBatch] | None = None
    meets: Callable[[Rule], bool] = lambda rule: True


SCALES = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1e4, 1e6)  # that the strongest try
NO_ATTACK = "none"
ATTACKS = {
    NO_ATTACK: Attack(),
    "sign flip": Attack(lambda s: jm.attacks.sign_flip(s.workers)),
    "inner product, .5": Attack(
        lambda s: jm.attacks.inner_product_manipulation(s.workers, scale=0.5)
    ),
    "inner product, 1e6": Attack(
        lambda s: jm.attacks.inner_product_manipulation(s.workers, scale=1e6)
    ),
    "a little is enough, 1.5": Attack(
        lambda s: jm.attacks.a_little_is_enough(s.workers, scale=1.5)
    ),
    "min-max": Attack(lambda s: jm.attacks.min_max(s.workers)),
    "strongest inner product": Attack(
        lambda s: jm.attacks.strongest(
            jm.attacks.inner_product_manipulation, s.rule, s.workers, scales=SCALES
        )
    ),
    "strongest little": Attack(
        lambda s: jm.attacks.strongest(
            jm.attacks.a_little_is_enough, s.rule, s.workers, scales=SCALES
        )
    ),
    "mimic": Attack(lambda s: jm.attacks.mimic(s.workers)),
    "Gaussian": Attack(lambda s: jm.attacks.gaussian(s.workers, s.key, scale=10.0)),
    "inf": Attack(lambda s: jm.attacks.inf(s.workers)),
    "NaN": Attack(lambda s: jm.attacks.nan(s.workers)),
    "label flip": Attack(batches=jm.attacks.label_flip),
    "near-tie collusion": Attack(lambda s: jm.attacks.near_tie_collusion(s.workers)),
    "pivotal votes": Attack(
        lambda s: jm.attacks.pivotal_votes(s.workers, *s.noise),
        meets=lambda rule: rule.unit_steps and not (rule.bucketed or rule.remembers),
    ),
}


def chosen_attacks(names: Sequence[str]) -> dict[str, Attack]:
    """Returns "none" and the attacks of these names, all for no names.

    Raises:
      Misuse: for an unknown name, and for "none", which is always there.
    """
    wanted = [name for name in ATTACKS if name != NO_ATTACK]
    unknown = [name for name in names if name not in wanted]
    if unknown:
        raise Misuse(f"--attacks takes some of {wanted}; got {unknown}.")
    return {name: ATTACKS[name] for name in (NO_ATTACK, *(names or wanted))}


def one_of(
    transforms: Sequence[optax.GradientTransformation], which: Any
) -> optax.GradientTransformationExtraArgs:
    """Applies one of the transforms, number ``which``; the others keep their state.

    All are compiled and one is computed, as long as ``which`` is not vmapped.
    """
    extended = [optax.with_extra_args_support(tx) for tx in transforms]

    def init_fn(params: Any) -> tuple[Any, ...]:
        return tuple(tx.init(params) for tx in extended)

    def update_fn(
        updates: Any, states: tuple[Any, ...], params: Any = None, **extra_args: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        def branch(number: int) -> Callable[[], tuple[Any, tuple[Any, ...]]]:
            def apply() -> tuple[Any, tuple[Any, ...]]:
                new, state = extended[number].update(
                    updates, states[number], params, **extra_args
                )
                return new, (*states[:number], state, *states[number + 1 :])

            return apply

        return jax.lax.switch(which, [branch(i) for i in range(len(extended))])

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def attack_gradients(
    attacks: Sequence[Attack], scene: Scene, which: Any
) -> optax.GradientTransformationExtraArgs:
    """Builds the worker transform of attack number ``which``."""
    return one_of(
        [
            optax.identity() if attack.gradients is None else attack.gradients(scene)
            for attack in attacks
        ],
        which,
    )


def spoil_batches(
    attacks: Sequence[Attack],
    workers: tuple[int, ...],
    num_classes: int,
    next_batch: NextBatch,
    which: Any,
) -> jax.tree_util.Partial:
    """Serves the batches of attack number ``which``."""
    serve = functools.partial(_serve, tuple(attacks), workers, num_classes)
    return jax.tree_util.Partial(serve, next_batch, which)


def _serve(
    attacks: Sequence[Attack],
    workers: tuple[int, ...],
    num_classes: int,
    next_batch: NextBatch,
    which: jax.Array,
    key: jax.Array,
    step: jax.Array,
) -> Any:
    serve: Callable[[], Any] = functools.partial(next_batch, key, step)
    for number, attack in enumerate(attacks):
        if attack.batches is not None:
            spoil = attack.batches(next_batch, workers, num_classes)
            spoilt = functools.partial(spoil, key, step)
            serve = functools.partial(jax.lax.cond, which == number, spoilt, serve)
    return serve()
