"""Resume a run from its own checkpoint, and refuse that of any other run.

A run is known by what `jaxmedian.training.identity` lists and by the shapes of its
state. The metrics of all edges so far travel along.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxmedian.checkpoint import Folder, Path, as_folder, read_state, write_state
from jaxmedian.checkpoint.storage import Store
from jaxmedian.training.chunks import model_of
from jaxmedian.training.evaluation import Best, better_of
from jaxmedian.training.identity import describe, differences, identity_of
from jaxmedian.training.reporting import Row
from jaxmedian.training.sources import Drawn, Loaded, Taken
from jaxmedian.workers.collectives import PyTree
from jaxmedian.workers.placing import PerWorkerState


class Edge(NamedTuple):
    """Where a run stands at the edge of a chunk.

    Attributes:
      step: steps taken.
      state: ``(params, opt_state)``, and the model's state if it has one.
      rows: the metrics of all edges so far.
      best: the best parameters of all full chunks' edges, if they are kept.
    """

    step: int
    state: PyTree
    rows: list[Row]
    best: Best | None = None

    def go_on(
        self, taken: Taken, row: dict[str, jax.Array], chunk: int, keep_best: str | None
    ) -> "Edge":
        """Returns the next edge, its metrics on the host.

        An edge that was one only because a run ended there has no part in what goes on.

        Raises:
          ValueError: if its metrics are others than those of a resumed run so far.
        """
        new = {name: _on_host(value) for name, value in row.items()}
        here = _forms(new)
        wanted = _forms(self.rows[-1]) if self.rows else here
        if wanted != here:
            differs = [n for n in wanted | here if wanted.get(n) != here.get(n)]
            raise ValueError(
                "What is measured must be what the checkpoint was made with, "
                f"{[*wanted]}; got {[*here]}, which differ in {differs}. Restore "
                "`metrics`, `evaluate`, `has_aux` and `worker_chunk` (streamed "
                "gradients are not measured), or give another folder."
            )
        rows = [row for row in self.rows if not row["step"] % chunk]
        edge = Edge(taken.step, taken.state, [*rows, new], self.best)
        return edge if taken.step % chunk else edge._replace(best=edge.final(keep_best))

    def final(self, keep_best: str | None) -> Best | None:
        """Returns the best parameters if the run ends here."""
        if not self.rows:
            return self.best
        return better_of(self.best, keep_best, self.rows[-1], model_of(self.state))

    def shown(self, names: Iterable[str]) -> Row:
        """Returns the loss and those numbers among ``names``, for a progress bar."""
        row = self.rows[-1]
        return {n: row[n] for n in ("loss", *names) if isinstance(row[n], float)}

    def saved_state(self) -> PyTree:
        """Returns the arrays that a checkpoint holds."""
        params, opt_state, *_ = self.state
        best = () if self.best is None else self.best.model
        return params, opt_state, *model_of(self.state)[1:], *best

    def with_saved(
        self, step: int, saved: PyTree, rows: list[Row], best: PyTree
    ) -> "Edge":
        """Returns the edge whose arrays a checkpoint held, placed as here."""
        held = [  # as here: per worker or shared
            PerWorkerState(state) if isinstance(own, PerWorkerState) else state
            for own, state in zip(self.state[2:], saved[2:], strict=False)
        ]
        model = saved[len(self.state) :]
        return Edge(
            step, (*saved[:2], *held), rows, Best(best, model) if model else None
        )


class RunCheckpoints:
    """The checkpoints of one run of `jaxmedian.run`; without a store it does nothing.

    Args:
      store: the open folder, or None.
      every: edges between two checkpoints.
      identity: name -> value, of what makes it this run and no other.
      source: of the batches, whose position is saved beside.
    """

    def __init__(
        self,
        store: Store | None,
        every: int,
        identity: dict[str, Any],
        source: Drawn | Loaded,
    ):
        """Starts at step 0, which needs no checkpoint."""
        self._store, self._every, self._identity = store, every, identity
        self._source = source
        self._saved_step = 0
        self._edges = 0
        self._start: dict[str, Any] = {}

    def restore(self, start: Edge, num_steps: int) -> Edge:
        """Returns the newest edge saved, or ``start`` if there is none.

        If steps are left to take, the batches stand there too.

        Raises:
          ValueError: if the checkpoint is damaged, foreign, or of another run; if the
            batches cannot be moved.
          TypeError: if where they stand could not be saved.
          OSError: if the folder may only be read.
        """
        if self._store is not None and self._store.latest_step() != num_steps:
            self._store.check_writable()
        edge = self._restored(start, num_steps)
        if edge is None:
            edge = start
            if edge.step < num_steps:
                self._source.start(edge.step)
        if self._store is not None and edge.step < num_steps:
            self._source.position()  # before steps are taken that it would lose
        return edge

    def _restored(self, start: Edge, num_steps: int) -> Edge | None:
        """Returns the newest edge saved, if there is one."""
        if self._store is None:
            return None
        step = self._store.latest_step()
        params, _, *model_state = start.state
        self._start = describe("params", params) | describe("model_state", model_state)
        if step is None:
            return None
        notes = self._store.read_notes(step)
        place = self._store.path / str(step)
        _check_identity(place, notes.get("run"), self._identity)
        check_not_beyond(place, step, num_steps)
        if step < start.step:
            raise ValueError(
                f"{place} is a checkpoint before `step` {start.step}, at which this "
                "run starts: give another folder."
            )
        state = read_state(self._store, step, start.saved_state(), notes)
        self._start = _same_start(place, notes.get("start"), self._start)
        self._saved_step = step
        rows = [_from_json(row) for row in notes["rows"]]
        if jax.process_index() == 0:
            sys.stderr.write(f"Resuming at step {step} from {self._store.path}.\n")
        if step < num_steps:
            self._source.resume(notes.get("data"), step, start.step)
        return start.with_saved(step, state, rows, notes.get("best"))

    def visit(self, edge: Edge) -> None:
        """Saves every so many edges."""
        self._edges += 1
        if self._edges % self._every == 0:
            self.save(edge)

    def save(self, edge: Edge) -> None:
        """Saves an edge, unless it is saved already."""
        if self._store is None or edge.step == self._saved_step:
            return
        rows = [_as_json(row) for row in edge.rows]
        notes: dict[str, Any] = {"run": self._identity, "rows": rows}
        notes["start"] = self._start
        notes["data"] = self._source.position()
        if edge.best is not None:
            notes["best"] = edge.best.value
        write_state(self._store, edge.step, edge.saved_state(), notes)
        self._saved_step = edge.step


def check_not_beyond(place: object, step: int, num_steps: int) -> None:
    """Raises if a checkpoint is of a later step than that at which a run ends."""
    if step > num_steps:
        raise ValueError(
            f"{place} is a checkpoint beyond `num_steps` {num_steps}: raise it, or "
            "give another folder."
        )


def _forms(row: Row) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of measurements by name."""
    return {name: np.shape(value) for name, value in row.items()}


def _on_host(value: jax.Array) -> float | np.ndarray:
    return float(value) if value.ndim == 0 else np.asarray(value)


def _as_json(row: Row) -> dict[str, Any]:
    """Writes arrays as dtype, list and shape: exact, as Python's floats are."""
    return {
        name: [str(value.dtype), value.ravel().tolist(), value.shape]
        if isinstance(value, np.ndarray)
        else value
        for name, value in row.items()
    }


def _from_json(row: dict[str, Any]) -> Row:
    def read(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        dtype, numbers, *shape = value  # older checkpoints nested them, without a shape
        array = np.asarray(numbers, dtype)
        return array.reshape(*shape) if shape else array

    return {name: read(value) for name, value in row.items()}


@contextlib.contextmanager
def open_run(
    folder: Folder | Path | None,
    optimizer: optax.GradientTransformation,
    state_over_workers: str | None,
    key: jax.Array,
    opt_state: optax.OptState,
    chunk: int,
    keep_best: str | None,
    source: Drawn | Loaded,
) -> Iterator[RunCheckpoints]:
    """Opens the checkpoints of the run that these arguments start.

    ``state_over_workers`` is None for a model without state.
    """
    if folder is None:
        yield RunCheckpoints(None, 1, {}, source)
        return
    folder = as_folder(folder)
    identity = identity_of(optimizer, key, opt_state, chunk) | {"keep_best": keep_best}
    if state_over_workers is not None:
        identity["`state_over_workers`"] = state_over_workers
    with Store(folder.path, folder.keep) as store:
        yield RunCheckpoints(store, folder.every, identity, source)


def _same_start(
    place: object, saved: dict[str, Any] | None, here: dict[str, Any]
) -> dict[str, Any]:
    """Returns what a run started from; warns where this call gives something else."""
    saved = here if saved is None else saved
    if changed := [name for name, value in here.items() if saved.get(name) != value]:
        warnings.warn(
            f"{place} is of a run that started from other {', '.join(changed[:3])} "
            "than this call gives, and goes on from where it is. For a run from these "
            "give another folder.",
            stacklevel=2,
        )
    return saved


def _check_identity(
    place: object, saved: dict[str, Any] | None, here: dict[str, Any]
) -> None:
    if saved is None:
        raise ValueError(
            f"{place} is a checkpoint of another training loop, not of `jm.run`: read "
            "it with `jm.checkpoint.restore`, or give another folder."
        )
    changed = differences(saved, here)
    if changed:
        raise ValueError(
            f"{place} is a checkpoint of another run: it differs in "
            f"{', '.join(changed)}. Give the arguments it was made with, or another "
            "folder. Nothing was changed."
        )
