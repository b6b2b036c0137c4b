"""Whole models: how long a step takes to compile, and what memory it needs.

Shapes only; the loss is a weighted sum of the parameters, so that what is counted is
the optimizer's and one gradient's, not a network's activations.
"""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxmedian as jm
from experiments.common.harness.results import Claim
from experiments.systems.benchmark.timing import peak_mib

_MIB = 2**20


class Cost(NamedTuple):
    """What one step of a model costs before it runs.

    Attributes:
      compile_seconds: tracing and compiling.
      peak_mib: arguments, temporaries and outputs that reuse no argument, of the
        compiled program, in MiB.
      bound_mib: parameters, one worker's gradient and the tally, plus 10 %, in MiB.
    """

    compile_seconds: float
    peak_mib: float
    bound_mib: float


def compile_all() -> tuple[list[Claim], dict[str, float]]:
    """Compiles all of it: what must hold, and what pages quote, in CPU seconds."""
    models = {"ResNet-20": (resnet20_shapes(), 11), "GPT-2": (gpt2_shapes(), 8)}
    rules = {
        "mean": optax.chain(jm.worker_mean(), optax.sgd(0.1)),
        "Gaussian independent vote": jm.noisy_sign_sgd(0.1, jm.noise.gaussian(0.1), 0),
        "uniform systematic vote": jm.noisy_sign_sgd(
            0.1, jm.noise.uniform(0.1, "systematic"), 0
        ),
    }
    cost_of_compiling(*models["ResNet-20"], rules["mean"])  # the first takes longer
    claims, figures = [], {}
    for model, (shapes, num_workers) in models.items():
        for rule, optimizer in rules.items():
            seconds, lines = cost_of_compiling(shapes, num_workers, optimizer)
            figures[f"{model}, {rule}"] = seconds
            figures[f"{model}, {rule}, lines"] = float(lines)
            if rule == "mean":
                continue
            least = figures[f"{model}, mean"]
            title = f"{model}'s {len(shapes)} leaves, M = {num_workers}, {rule}"
            here = f"{seconds:.2f} s of CPU, the mean {least:.2f}; {lines:,} lines"
            if model == "ResNet-20":
                wanted = "at most 3 times the mean's CPU seconds and 3,000 lines"
                holds = seconds <= 3 * least and lines <= 3000
            else:
                wanted, holds = "at most 5 s of CPU", seconds <= 5
            claims.append(Claim(f"{title}: {wanted} to compile", here, bool(holds)))
    return [*claims, *_step_claims()], figures


def _step_claims() -> list[Claim]:
    """Compiles whole steps; what must hold is stated in each claim."""
    noise = jm.noise.gaussian(0.1)
    vote, median = jm.noisy_sign_sgd(0.1, noise, 0), jm.noisy_median_sgd(0.1, noise, 0)
    claims = []
    for name, optimizer in (("vote", vote), ("median", median)):
        shapes = resnet20_shapes()
        cost = cost_of_step(shapes, jnp.float32, 31, optimizer, None)
        claims.append(
            Claim(
                f"ResNet-20, M = 31, noisy {name}: step compiled within 40 s",
                f"{cost.compile_seconds:.1f} s",
                cost.compile_seconds <= 40,
            )
        )
    cost = cost_of_step(gpt2_shapes(), jnp.bfloat16, 8, vote, 1)
    claims.append(
        Claim(
            "GPT-2 small in bfloat16, M = 8, worker_chunk = 1, noisy vote: compiled "
            "within 60 s, to run in parameters + one gradient + tally + 10 %",
            f"{cost.compile_seconds:.1f} s, {cost.peak_mib:.0f} of "
            f"{cost.bound_mib:.0f} MiB",
            cost.compile_seconds <= 60 and cost.peak_mib <= cost.bound_mib,
        )
    )
    peak = streamed_peak_mib(1001, 1_000_000, worker_chunk=16)
    claims.append(
        Claim(
            "M = 1001, d = 1,000,000, worker_chunk = 16, noisy vote: below 600 MiB",
            f"{peak:.0f} MiB",
            peak < 600,
        )
    )
    return claims


def resnet20_shapes() -> list[tuple[int, ...]]:
    """Lists the leaves of ResNet-20 without BatchNorm, with biases."""
    shapes: list[tuple[int, ...]] = [(3, 3, 3, 16), (16,)]
    channels = 16
    for width in (16, 32, 64):
        for _ in range(3):
            shapes += [
                (3, 3, channels, width),
                (width,),
                (3, 3, width, width),
                (width,),
            ]
            channels = width
    return [*shapes, (64, 10), (10,)]


def gpt2_shapes(width: int = 768, layers: int = 12) -> list[tuple[int, ...]]:
    """Lists the leaves of GPT-2 small: 148 of them, 124 million parameters."""
    block: list[tuple[int, ...]] = [
        *[(width,)] * 2,
        *[(width, 3 * width), (3 * width,), (width, width), (width,)],
        *[(width,)] * 2,
        *[(width, 4 * width), (4 * width,), (4 * width, width), (width,)],
    ]
    return [(50257, width), (1024, width), *block * layers, (width,), (width,)]


def cost_of_step(
    shapes: list[tuple[int, ...]],
    dtype: Any,
    num_workers: int,
    optimizer: optax.GradientTransformation,
    worker_chunk: int | None,
) -> Cost:
    """Compiles one step of a tree of parameters, which are donated."""
    params = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    batch = jax.ShapeDtypeStruct((num_workers, 4), jnp.float32)
    step = jm.make_step(_loss, optimizer, worker_chunk=worker_chunk)
    state = jax.eval_shape(optimizer.init, params)
    start = time.perf_counter()
    compiled = (
        jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch).compile()
    )
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    size = sum(math.prod(shape) for shape in shapes)
    tally = size * (1 if num_workers < 128 else 4)
    bound = 1.1 * (2 * size * jnp.dtype(dtype).itemsize + tally)
    return Cost(seconds, peak / _MIB, bound / _MIB)


def cost_of_compiling(
    shapes: list[tuple[int, ...]],
    num_workers: int,
    optimizer: optax.GradientTransformation,
) -> tuple[float, int]:
    """Compiles an update alone; returns CPU seconds and lines of the lowered program.

    Tracing and lowering are in the seconds; nothing is cached.
    """
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    grads = [jax.ShapeDtypeStruct((num_workers, *s), jnp.float32) for s in shapes]
    state = jax.eval_shape(optimizer.init, params)
    jax.clear_caches()
    start = time.process_time()
    lowered = jax.jit(optimizer.update).lower(grads, state, params)
    lowered.compile()
    seconds = time.process_time() - start
    return seconds, lowered.as_text().count("\n")


def streamed_peak_mib(num_workers: int, size: int, worker_chunk: int) -> float:
    """Runs one streamed noisy vote; returns the peak memory above the idle process."""
    optimizer = jm.noisy_sign_sgd(0.1, jm.noise.gaussian(0.1), 0)
    params = [jnp.zeros(size)]
    step = jm.make_step(_loss, optimizer, worker_chunk=worker_chunk)
    state = optimizer.init(params)
    batch = jnp.ones((num_workers, 4))
    return peak_mib(lambda: jax.block_until_ready(step(params, state, batch)))


def _loss(params: list[jax.Array], batch: jax.Array) -> jax.Array:
    weight = jnp.mean(batch)
    return sum(
        (jnp.sum(x.astype(jnp.float32) * weight) for x in params), jnp.float32(0)
    )
