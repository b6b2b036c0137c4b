"""Checkpoints of one process of an elastic run, in a folder of its own.

All processes hold the same state, but none can wait for the others to save it: each
writes what it has, and who is furthest on after a restart hands it to the rest.
"""

import contextlib
from collections.abc import Iterator

from jaxmedian.checkpoint import Folder, Path, as_folder, read_state, write_state
from jaxmedian.checkpoint.storage import Store
from jaxmedian.sharding.elastic.record import History
from jaxmedian.training.chunks import TrainState
from jaxmedian.training.resume import check_not_beyond


class OwnCheckpoints:
    """The open folder of a process, or none.

    Args:
      store: where they go, or None.
      every: steps between two of them.
      digest: of the configuration, which a run must share with its checkpoint.
    """

    def __init__(self, store: Store | None, every: int, digest: bytes):
        """Starts at step 0, which needs no checkpoint."""
        self._store, self._every, self._digest = store, every, digest
        self._saved = 0

    def restore(
        self, state: TrainState, history: History, num_steps: int
    ) -> tuple[TrainState, History]:
        """Returns the newest state saved, or what it is given.

        Raises:
          ValueError: if the checkpoint is damaged, foreign, of another run, or beyond
            the step at which this one ends.
          OSError: if the folder may only be read, and steps are left to take.
        """
        if self._store is None:
            return state, history
        step = self._store.latest_step()
        if step != num_steps:
            self._store.check_writable()
        if step is None:
            return state, history
        notes = self._store.read_notes(step)
        noted = notes.get("elastic")
        if noted is None or noted["configuration"] != self._digest.hex():
            raise ValueError(
                f"{self._store.path / str(step)} is a checkpoint of another run: give "
                "the arguments it was made with, or another folder. Nothing was "
                "changed."
            )
        check_not_beyond(self._store.path / str(step), step, num_steps)
        self._saved = step
        state = read_state(self._store, step, state, notes)
        return state, History.from_json(noted["history"])

    def visit(self, state: TrainState, history: History) -> None:
        """Saves every so many steps."""
        if history.num_steps % self._every == 0:
            self.save(state, history)

    def save(self, state: TrainState, history: History) -> None:
        """Saves a step that is further on than what is saved."""
        step = history.num_steps
        if self._store is None or step <= self._saved:
            return
        noted = {"configuration": self._digest.hex(), "history": history.as_json()}
        write_state(self._store, step, state, {"elastic": noted})
        self._saved = step


@contextlib.contextmanager
def open_own(
    checkpoint: Folder | Path | None, process: int, every: int, digest: bytes
) -> Iterator[OwnCheckpoints]:
    """Opens the folder of a process inside that of the run."""
    if checkpoint is None:
        yield OwnCheckpoints(None, every, digest)
        return
    folder = as_folder(checkpoint)
    with Store(f"{folder.path}/process_{process}", folder.keep) as store:
        yield OwnCheckpoints(store, every * folder.every, digest)
