"""Elastic: processes are killed and come back; the rest train on, replayable.

Claim: with `jm.elastic.run` any minority of the processes may be killed by SIGKILL at
any moment. The others go on within the deadline and a few seconds; those restarted
rejoin with the state of a peer; if all are killed they go on from their checkpoints.
At the end all hold the same bits, and so does the one-device simulator, given the
record of who took part in which step.

    python -m experiments elastic                   50 kills of 1 of 4 processes
    python -m experiments elastic --preset quick    5 kills

Needs the extra `jaxmedian[elastic]`. Everything runs on this machine's CPUs. The
lighthouse is killed and restarted too. Steps a second are those while nobody is killed,
beside those of the packed vote by `jax.distributed` collectives, where a kill ends all.
"""

import dataclasses
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import jaxmedian as jm
from experiments.common.harness.misuse import Misuse
from experiments.common.harness.options import Count, Seed, Whole
from experiments.common.harness.plots import panels
from experiments.common.harness.results import Claim, Result
from experiments.systems.elastic.crowd import Crowd, time_collective
from jaxmedian.sharding.elastic.quorum import import_torchft


@dataclasses.dataclass(frozen=True)
class Config:
    """Whom to kill, how often, and what they train.

    Attributes:
      processes: P.
      kills: times that a random minority is killed and restarted.
      lighthouse_kills: times that the lighthouse is killed and restarted, after those.
      workers_each: workers of each process.
      num_parameters: d.
      deadline: seconds that a process may be late.
      seconds_to_go_on: what the others may take beyond two deadlines: one to notice
        within a step, one in the quorum behind it.
      quiet_steps: steps without kills, over which speed is measured.
      last_steps: steps after all were killed.
      save_every: steps between two checkpoints.
      pause: seconds that each process sleeps after a step.
      collective: whether to time the collective vote too.
      learning_rate: of the vote.
      scale: b, of its Gaussian noise.
      patience: seconds after which the experiment gives up waiting.
      seed: of the data, the noise and the kills.
    """

    processes: Count = 4
    kills: Whole = 50
    lighthouse_kills: Whole = 2
    workers_each: Count = 2
    num_parameters: Count = 100_000
    deadline: float = 3.0
    seconds_to_go_on: float = 5.0
    quiet_steps: Count = 200
    last_steps: Count = 50
    save_every: Count = 100
    pause: float = 0.0
    collective: bool = True
    learning_rate: float = 1e-3
    scale: float = 1.0
    patience: float = 300.0
    seed: Seed = 0


PRESETS = {
    "quick": Config(kills=5, lighthouse_kills=1),
    "tiny": Config(
        processes=3,
        kills=1,
        lighthouse_kills=0,
        num_parameters=1000,
        deadline=2.0,
        quiet_steps=10,
        last_steps=5,
        save_every=5,
        pause=0.05,
        collective=False,
    ),
}


def run(config: Config) -> Result:
    """Kills and restarts, then compares all with one another and with a replay."""
    if config.processes < 3:
        raise Misuse(
            "--processes must be at least 3: of fewer no minority can be killed; got "
            f"{config.processes}."
        )
    if importlib.util.find_spec("torchft") is None:
        import_torchft()  # says what to install
    from experiments.systems.elastic.survivor import arguments, digest

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        collective = None
        if config.collective:
            collective = time_collective(config, folder, config.patience)
        found = _with_kills(config, folder)
    first = found["results"][0]
    record = jm.elastic.Record(
        np.asarray(first["present"], np.bool_), np.asarray(first["losses"])
    )
    num_workers = config.processes * config.workers_each
    replay = jm.run(
        *arguments(config, len(record.present)),
        worker_chunk=1,
        extra_args=record.as_extra_args(num_workers),
    )
    found["digests"] = [one["digest"] for one in found["results"]]
    found["replay"] = digest((replay.params, replay.opt_state))
    extra = {name: value for name, value in found.items() if name != "results"}
    extra |= {
        "collective_steps_per_second": collective,
        "message_bytes": first["message_bytes"],
        "num_steps": len(record.present),
    }
    extra["figures"] = _figures(extra)
    steps = np.arange(1, len(record.present) + 1)
    curves = {"present": {"step": steps, "processes": record.present.sum(axis=1)}}
    return Result(curves, _claims(config, extra), extra)


def _with_kills(config: Config, folder: Path) -> dict[str, Any]:
    """Runs the processes; returns what they found, and the seconds everything took."""
    rng = np.random.default_rng(config.seed)
    everybody = list(range(config.processes))
    gone_on, rejoined, lighthouse = [], [], []
    endless = 10**8
    with Crowd(config, folder, config.patience) as crowd:

        def furthest() -> int:
            return max(crowd.last_step(number).number for number in everybody)

        def wait_for_all() -> float:
            whole = "1" * config.processes
            return crowd.wait(
                "all to take part",
                lambda: all(crowd.last_step(i).present == whole for i in everybody),
            )

        crowd.start_members(everybody, endless)
        wait_for_all()
        start, began = furthest(), time.monotonic()
        crowd.wait("steps", lambda: furthest() >= start + config.quiet_steps)
        speed = (furthest() - start) / (time.monotonic() - began)
        for _ in range(config.kills):
            time.sleep(rng.uniform(0, 0.5))
            most = (config.processes - 1) // 2
            victims = rng.choice(everybody, rng.integers(1, most + 1), replace=False)
            killed_at = furthest()
            crowd.kill(victims.tolist())
            alive = sorted(set(everybody) - set(victims.tolist()))
            gone_on.append(crowd.wait("the rest", _moves(crowd, alive, killed_at + 2)))
            time.sleep(rng.uniform(0, config.deadline))
            crowd.start_members(victims.tolist(), endless)
            rejoined.append(wait_for_all())
        for _ in range(config.lighthouse_kills):
            crowd.kill(["lighthouse"])
            time.sleep(rng.uniform(0, config.deadline))
            killed_at = furthest()
            crowd.start_lighthouse()
            moves = _moves(crowd, everybody, killed_at + 2)
            lighthouse.append(crowd.wait("a new lighthouse", moves))
        last = furthest()
        crowd.kill(everybody)
        crowd.start_members(everybody, last + config.last_steps)
        results = crowd.results()
    return {
        "results": results,
        "steps_per_second": speed,
        "seconds_to_go_on": gone_on,
        "seconds_to_rejoin": rejoined,
        "seconds_after_lighthouse": lighthouse,
    }


def _figures(found: dict[str, Any]) -> dict[str, float | int]:
    """Names what pages quote."""
    return {
        "kills": len(found["seconds_to_rejoin"]),
        "longest, s": max(found["seconds_to_go_on"], default=0.0),
        "rejoin, s": float(np.median(found["seconds_to_rejoin"] or [0.0])),
        "lighthouse, s": max(found["seconds_after_lighthouse"], default=0.0),
        "speed": found["steps_per_second"],
        "collective": found["collective_steps_per_second"] or 0.0,
        "bytes": found["message_bytes"],
        "steps": found["num_steps"],
    }


def _moves(crowd: Crowd, numbers: list[int], step: int) -> Any:
    return lambda: all(crowd.last_step(i).number >= step for i in numbers)


def _claims(config: Config, found: dict[str, Any]) -> tuple[Claim, ...]:
    number = f"{config.processes} processes, {found['num_steps']:,} steps"
    same = len(set(found["digests"])) == 1
    replayed = same and found["replay"] == found["digests"][0]
    most = 2 * config.deadline + config.seconds_to_go_on
    slowest = max(found["seconds_to_go_on"], default=0.0)
    rejoined = found["seconds_to_rejoin"]
    speed = f"{found['steps_per_second']:.1f} steps a second"
    if found["collective_steps_per_second"]:
        speed += f" ({found['collective_steps_per_second']:.1f} by collectives)"
    return (
        Claim(
            "after kills, rejoins and a restart of all, every process holds the same "
            "bits",
            f"{'the same' if same else 'they differ'}: {number}",
            same,
        ),
        Claim(
            "the simulator replays the run from the record of who took part",
            "the same bits" if replayed else "they differ",
            replayed,
        ),
        Claim(
            f"when a minority is killed the rest go on within {most:g} s",
            f"{len(rejoined)} kills, at most {slowest:.1f} s; all rejoined, after "
            f"{np.median(rejoined or [0]):.1f} s (median, their start included); "
            f"{speed}, {found['message_bytes']:,} bytes a message",
            slowest <= most,
        ),
    )


def plot(result: Result) -> Figure:
    """Draws how many processes took part in each step."""
    figure, axes = panels(1)
    curve = result.curves["present"]
    axes[0].step(curve["step"], curve["processes"], where="mid")
    axes[0].set_xlabel("step")
    axes[0].set_title("processes that took part")
    return figure
