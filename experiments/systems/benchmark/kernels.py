"""One aggregation of ``[M, d]`` float32 numbers: ours, and the same by others.

Each function lists candidates, name -> function that does the work and waits for it.
Ours are jitted transforms' own kernels through the public API; the others are what
their users would write.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmedian as jm
from experiments.common.harness.installed import installed_byzfl, installed_torch
from experiments.common.harness.misuse import Misuse
from jaxmedian.kernels.rows import sum_of_rows

Run = Callable[[], object]
ONE_B = "one b"  # the candidate that scales for every coordinate are compared with
SCALE = 0.3  # b, for gradients of standard deviation 1


class Work(NamedTuple):
    """One thing to do, with every way to do it.

    Attributes:
      name: what is computed.
      ours: our candidates.
      peers: everybody else's.
      compile_seconds: of each of ours.
    """

    name: str
    ours: dict[str, Run]
    peers: dict[str, Run]
    compile_seconds: dict[str, float]


def read_limit(x: jax.Array) -> Run:
    """Adds the rows: the least that any rule has to do."""
    return compiled(lambda x: sum_of_rows(x, present=None), x)[0]


def works(x: np.ndarray, only: tuple[str, ...] = ()) -> list[Work]:
    """Lists the works on rows ``[M, d]``: those of the names ``only``, or all."""
    on_device = jnp.asarray(x)
    noises = {
        "gaussian independent": jm.noise.gaussian(SCALE),
        "laplace independent": jm.noise.laplace(SCALE),
        "logistic independent": jm.noise.logistic(SCALE),
        "uniform independent": jm.noise.uniform(SCALE),
        "gaussian systematic": jm.noise.gaussian(SCALE, "systematic"),
        "uniform systematic": jm.noise.uniform(SCALE, "systematic"),
    }
    transforms = {"vote": jm.majority_vote(), "median": jm.coordinate_median()}
    peers = {"vote": lambda: _vote_peers(x), "median": lambda: _median_peers(x)}
    for name, noise in noises.items():
        for kind, build in (
            ("vote", jm.majority_vote),
            ("median", jm.coordinate_median),
        ):
            title = f"noisy {kind}, {name}"
            transforms[title] = build(noise, 0)
            peers[title] = functools.partial(_noisy_peers, x, noise, kind)
    unknown = set(only) - set(transforms)
    if unknown:
        raise Misuse(f"--only takes some of {list(transforms)}; got {unknown}.")
    return [
        _work(name, transform, peers[name](), on_device)
        for name, transform in transforms.items()
        if not only or name in only
    ]


def scale_works(x: np.ndarray) -> list[Work]:
    """Lists noise with a scale for every coordinate, beside noise with one b.

    Votes are timed in a step between two at which their running squares are sent.
    """
    works = []
    for kind, build, statistics in (
        ("median", jm.coordinate_median, ("sd", "range", "mad")),
        ("vote", jm.majority_vote, ("rms",)),
    ):
        ours, seconds = {}, {}
        for name in (ONE_B, *statistics):
            scale: Any = SCALE
            if name != ONE_B:
                every = 50 if name == "rms" else 1
                scale = jm.noise.per_coordinate(SCALE, name, every=every)
            transform = build(jm.noise.uniform(scale, "systematic"), 0)
            found = _work(name, transform, {}, jnp.asarray(x), steps_before=1)
            ours[name] = found.ours["jaxmedian"]
            seconds[name] = found.compile_seconds["jaxmedian"]
        title = f"noisy {kind}, uniform systematic, a scale for every coordinate"
        works.append(Work(title, ours, {}, seconds))
    return works


def _work(
    name: str,
    transform: Any,
    peers: dict[str, Run],
    x: jax.Array,
    steps_before: int = 0,
) -> Work:
    state = transform.init(x[0])
    for _ in range(steps_before):
        state = jax.jit(transform.update)(x, state)[1]
    run, seconds = compiled(lambda x, state: transform.update(x, state)[0], x, state)
    return Work(name, {"jaxmedian": run}, peers, {"jaxmedian": seconds})


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Run, float]:
    """Compiles for the arguments; returns the call and the seconds that took."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(program(*arguments)), seconds


def _vote_peers(x: np.ndarray) -> dict[str, Run]:
    on_device = jnp.asarray(x)
    naive, _ = compiled(lambda x: jnp.sign(jnp.sum(jnp.sign(x), axis=0)), on_device)
    peers: dict[str, Run] = {
        "jax.numpy": naive,
        "numpy": lambda: np.sign(np.sign(x).sum(axis=0)),
    }
    if (torch := installed_torch()) is not None:
        t = torch.from_numpy(x)
        peers["torch"] = lambda: torch.sign(torch.sign(t).sum(dim=0))
    return peers


def _median_peers(x: np.ndarray) -> dict[str, Run]:
    middle = x.shape[0] // 2
    on_device = jnp.asarray(x)
    naive, _ = compiled(lambda x: jnp.median(x, axis=0), on_device)
    peers: dict[str, Run] = {
        "jax.numpy": naive,
        "numpy partition": lambda: np.partition(x, middle, axis=0)[middle],
    }
    if (torch := installed_torch()) is not None:
        t = torch.from_numpy(x)
        peers["torch.median"] = lambda: torch.median(t, dim=0)
        peers["torch.sort"] = lambda: torch.sort(t, dim=0).values[middle]
        peers["torch.kthvalue"] = lambda: torch.kthvalue(t, middle + 1, dim=0)
    if (byzfl := installed_byzfl()) is not None:
        peers["ByzFL"] = lambda: byzfl.Median()(x)
    return peers


def _noisy_peers(x: np.ndarray, noise: jm.noise.Noise, kind: str) -> dict[str, Run]:
    """The vote or the median after noise of the same law and coupling."""
    on_device, key = jnp.asarray(x), jax.random.key(0)
    draw = {"independent": _independent, "systematic": _systematic}[noise.coupling]

    def naive(x: jax.Array, key: jax.Array) -> jax.Array:
        noisy = x + SCALE * draw(key, x.shape, noise.law)
        if kind == "median":
            return jnp.median(noisy, axis=0)
        return jnp.sign(jnp.sum(jnp.sign(noisy), axis=0))

    peers = {"jax.numpy": compiled(naive, on_device, key)[0]}
    if (torch := installed_torch()) is not None:
        finish = _torch_vote if kind == "vote" else _torch_median
        for name, noisy in _torch_noise(torch, x, noise).items():
            peers[name] = finish(torch, noisy)
    return peers


def _independent(key: jax.Array, shape: tuple[int, ...], law: str) -> jax.Array:
    """Draws noise of standard deviation 1, each number by itself."""
    if law == "gaussian":
        return jax.random.normal(key, shape)
    if law == "laplace":
        return 2**-0.5 * jax.random.laplace(key, shape)
    if law == "logistic":
        return 3**0.5 / np.pi * jax.random.logistic(key, shape)
    return 3**0.5 * jax.random.uniform(key, shape, minval=-1.0)


def _systematic(key: jax.Array, shape: tuple[int, ...], law: str) -> jax.Array:
    """Draws it at M evenly spaced quantiles a coordinate, from one random number."""
    number, order = jax.random.split(key)
    places = jax.random.permutation(order, shape[0]) / shape[0]
    quantiles = (jax.random.uniform(number, shape[1:]) + places[:, None]) % 1
    if law == "gaussian":
        return jax.scipy.special.ndtri(jnp.maximum(quantiles, 2.0**-24))  # finite
    return 3**0.5 * (2 * quantiles - 1)


def _torch_noise(
    torch: Any, x: np.ndarray, noise: jm.noise.Noise
) -> dict[str, Callable[[], Any]]:
    """Two ways to write x + b xi in torch: fresh arrays, and one buffer in place.

    None of a law that torch does not draw.
    """
    t = torch.from_numpy(x)
    buffer = torch.empty_like(t)
    width = SCALE * 3**0.5

    def places() -> Any:
        return torch.randperm(len(t))[:, None] / len(t)

    def quantiles() -> Any:
        return (torch.rand(t.shape[1]) + places()) % 1

    def quantiles_in_place() -> Any:
        return torch.add(torch.rand(t.shape[1]), places(), out=buffer).frac_()

    def normal_in_place() -> Any:
        return torch.special.ndtri(quantiles_in_place(), out=buffer)

    return {
        "gaussian independent": {
            "torch randn_like": lambda: t + SCALE * torch.randn_like(t),
            "torch normal_": lambda: buffer.normal_(0.0, SCALE).add_(t),
        },
        "uniform independent": {
            "torch rand_like": lambda: t + width * (2 * torch.rand_like(t) - 1),
            "torch uniform_": lambda: buffer.uniform_(-width, width).add_(t),
        },
        "gaussian systematic": {
            "torch rand, ndtri": lambda: t + SCALE * torch.special.ndtri(quantiles()),
            "torch rand, ndtri in place": lambda: normal_in_place().mul_(SCALE).add_(t),
        },
        "uniform systematic": {
            "torch rand": lambda: t + width * (2 * quantiles() - 1),
            "torch rand, in place": lambda: (
                quantiles_in_place().mul_(2 * width).sub_(width).add_(t)
            ),
        },
    }.get(f"{noise.law} {noise.coupling}", {})


def _torch_vote(torch: Any, draw: Callable[[], Any]) -> Run:
    return lambda: torch.sign(torch.sign(draw()).sum(dim=0))


def _torch_median(torch: Any, draw: Callable[[], Any]) -> Run:
    return lambda: torch.median(draw(), dim=0)
