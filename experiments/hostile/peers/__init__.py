"""Our robust rules and attacks beside ByzFL's and krum's, on the same arrays.

Claim: where a rule or an attack is theirs too, ours gives the same numbers in float64,
to 1e-6 in every random case; where they break (a NaN worker, an array written into)
ours does not; and ours is faster. Peers are compared with where they are installed, of
ByzFL 0.0.11 the aggregators and attacks alone, which do not need its torchvision.

    pip install --no-deps byzfl==0.0.11 torch     and krum==0.9.1, from Python 3.12 on
    python -m experiments peers                  200 cases each, times at d = 1,000,000
    python -m experiments peers --preset quick   20 cases, d = 100,000

Krum is compared with each peer's own number of neighbours: M - f - 1 (ByzFL) and
M - f - 2 (krum, Blanchard et al.). ByzFL's buckets get the order that ours have drawn,
and its attacks that look for a scale the scales that ours try.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.installed import installed_byzfl
from experiments.common.harness.options import Count, Seed
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result
from experiments.hostile.peers.pairs import Pair, Update, pairs
from experiments.systems.benchmark.kernels import compiled
from experiments.systems.benchmark.timing import take_turns

__all__ = ["Config", "PRESETS", "plot", "run"]

TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare.

    Attributes:
      cases: random arrays a rule.
      shapes: (M, f) of the cases, in turn; d is drawn from 1 to 50.
      workers: M of the times.
      size: d of the times.
      hostile: f of the times.
      turns: the most turns of a candidate.
      budget: seconds after which a slow candidate takes no further turn.
      seed: of all arrays.
    """

    cases: Count = 200
    shapes: tuple[tuple[int, int], ...] = ((5, 1), (8, 2), (11, 4), (25, 6))
    workers: Count = 25
    size: Count = 1_000_000
    hostile: Count = 5
    turns: Count = 5
    budget: float = 4.0
    seed: Seed = 0


PRESETS = {
    "quick": Config(cases=20, size=100_000),
    "tiny": Config(cases=2, shapes=((5, 1),), workers=5, size=500, hostile=1, turns=1),
}


def run(config: Config) -> Result:
    """Compares results and times of every pair, then what breaks."""
    found = pairs()
    differences = _largest_differences(config, found)
    rows = _times(config, found)
    claims = [
        *(
            Claim(
                f"{name}: equal in float64 to 1e-6 in {config.cases} random cases",
                f"largest difference {difference:.1e}",
                bool(difference <= TOLERANCE),
            )
            for name, difference in differences.items()
        ),
        *_speed_claims(config, rows),
        *_defects(),
    ]
    if not found:
        claims.append(Claim("Peers are installed", "neither ByzFL nor krum with torch"))
    extra: dict[str, Any] = {"differences": differences, "times": rows}
    if found:
        extra["figures"] = _figures(config, differences, rows)
    return Result({}, tuple(claims), extra)


def _figures(
    config: Config, differences: dict[str, float], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Sums up what pages quote: how far apart at most, and how many times faster."""
    times: dict[str, list[float]] = {}
    for row in rows:
        rule, peer = row["rule"].rsplit(", ", 1)
        by = {5.0: "coordinates", 2.0: "distances", 1.0: "bucketing", None: "clipping"}
        kind = "least diameter" if rule == "minimum diameter" else by[row["least"]]
        for name in (kind if peer == "ByzFL" else peer, f"{rule}, {peer}"):
            times.setdefault(name, []).append(row["times_faster"])
    return {
        "cases": f"{config.cases}",
        "differences": f"{max(differences.values()):.0e}",
        **{name: _range(values) for name, values in times.items()},
    }


def _range(values: list[float]) -> str:
    ends = [f"{end:.2g}" for end in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _largest_differences(config: Config, found: list[Pair]) -> dict[str, float]:
    differences = {}
    with _in_float64():
        for pair in found:
            rng = np.random.default_rng(config.seed)
            run_ours = {
                f: jax.jit(_first_update(pair.ours(f)))
                for f in {f for _, f in config.shapes}
            }
            largest = 0.0
            shapes = [s for s in config.shapes if s[0] <= pair.most_workers]
            for case in range(config.cases):
                num_workers, f = shapes[case % len(shapes)]
                # Few sizes: each compiles once.
                size = (3, 17, 50)[case // len(shapes) % 3]
                x = rng.normal(rng.normal(), 2 ** rng.normal(), (num_workers, size))
                ours = np.asarray(run_ours[f](x))
                if pair.is_attack:
                    ours = ours[-1]
                    theirs = pair.theirs(f)(x[: num_workers - f])
                else:
                    theirs = pair.theirs(f)(x)
                largest = max(largest, _difference(ours, np.asarray(theirs)))
            differences[pair.name] = largest
    return differences


def _in_float64() -> Any:
    enable = getattr(jax, "enable_x64", None)
    if not callable(enable):  # before jax 0.8
        enable = importlib.import_module("jax.experimental").enable_x64
    return enable(True)


def _first_update(transform: Any) -> Callable[[jax.Array], jax.Array]:
    def update(x: jax.Array) -> jax.Array:
        template = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        return transform.update(x, transform.init(template), None)[0]

    return update


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    differs = ours != theirs  # equal infinities do not
    apart = np.subtract(ours, theirs, where=differs, out=np.zeros(ours.shape))
    return float(np.abs(apart).max(initial=0.0))


def _times(config: Config, found: list[Pair]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(config.seed)
    x = rng.standard_normal((config.workers, config.size), dtype=np.float32)
    on_device = jnp.asarray(x)
    f = config.hostile
    rows = []
    for pair in found:
        if pair.is_attack:
            continue  # theirs returns one row, ours writes all of them
        ours, seconds = compiled(_first_update(pair.ours(f)), on_device)
        theirs = pair.theirs(f)

        def run_theirs(theirs: Update = theirs) -> np.ndarray:
            return theirs(x)

        timings = take_turns(
            {"jaxmedian": ours, "peer": run_theirs}, config.turns, config.budget
        )
        own, peer = timings["jaxmedian"], timings["peer"]
        row = {
            "rule": pair.name,
            "least": pair.least,
            "ms": 1e3 * own.seconds,
            "peer_ms": 1e3 * peer.seconds,
            "times_faster": peer.seconds / own.seconds,
            "compile_s": seconds,
            "peak_mib": own.peak_mib,
            "peer_peak_mib": peer.peak_mib,
        }
        rows.append(row)
        print(
            f"{pair.name:36} {row['ms']:9.1f} ms   peer {row['peer_ms']:9.1f} ms   "
            f"x{row['times_faster']:6.1f}   compile {seconds:.1f} s   "
            f"{own.peak_mib:.0f} MiB, peer {peer.peak_mib:.0f} MiB",
            flush=True,
        )
    return rows


def _speed_claims(config: Config, rows: list[dict[str, Any]]) -> list[Claim]:
    claims = []
    judged = config.size >= 1_000_000
    for row in rows:
        least = row["least"] or 0.0
        wanted = f"at least {least:g} times faster" if least > 1 else "faster"
        claims.append(
            Claim(
                f"{row['rule']}, M = {config.workers}, d = {config.size:,}: {wanted}",
                f"{row['times_faster']:.1f} times",
                bool(row["times_faster"] >= least) if judged and least else None,
            )
        )
    return claims


def _defects() -> list[Claim]:
    """What PEERS break on, and what ours does there."""
    x = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    x[0] = np.nan
    ours = {
        "Krum": np.asarray(_first_update(jm.krum(1))(jnp.asarray(x))),
        "median": np.asarray(jm.median(jnp.asarray(x))),
    }
    claims = []
    if (peer := installed_byzfl()) is not None:
        selected = bool(np.isnan(peer.Krum(1)(x.copy())).any())
        claims.append(
            Claim(
                "One NaN worker of 7: Krum selects somebody else",
                f"ByzFL's {'selects it' if selected else 'does not select it'}, ours "
                f"{'does too' if np.isnan(ours['Krum']).any() else 'does not'}",
                bool(np.isfinite(ours["Krum"]).all()),
            )
        )
        is_nan = bool(np.isnan(peer.Median()(x.copy())).any())
        claims.append(
            Claim(
                "One NaN worker of 7: the median is finite",
                f"ByzFL's is {'NaN' if is_nan else 'finite'}",
                bool(np.isfinite(ours["median"]).all()),
            )
        )
        rows = np.full((3, 4), 9.0)
        peer.Clipping(1.0)(rows)
        untouched = np.full((3, 4), 9.0)
        _first_update(jm.clip_workers(1.0))(jnp.asarray(untouched, jnp.float32))
        written = bool((rows != 9.0).any())
        claims.append(
            Claim(
                "Clipping leaves the array it was given as it is",
                f"ByzFL's {'writes into it' if written else 'leaves it'}",
                bool((untouched == 9.0).all()),
            )
        )
    return claims


def plot(result: Result) -> Figure:
    """Draws the times of every rule, ours and the peer's."""
    figure, (axes,) = panels(1)
    rows = result.extra["times"]
    places = np.arange(len(rows))
    axes.barh(places - 0.2, [row["ms"] for row in rows], 0.4, label="jaxmedian")
    axes.barh(places + 0.2, [row["peer_ms"] for row in rows], 0.4, label="peer")
    axes.set_yticks(places, [row["rule"] for row in rows], fontsize=6)
    axes.set(
        xscale="log",
        xlabel="ms an aggregation",
        title="the same arrays, ours and the peers' rules",
    )
    if rows:
        axes.legend(fontsize=7)
    return figure
