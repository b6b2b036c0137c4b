"""Processes that come and go: the only file that knows torchft.

torchft's lighthouse hears a heartbeat of every process, and says at each step which of
them take part: its quorum. Those form a group of gloo anew where it has changed, and
who is behind gets the state of one that is not. Nothing here knows what is exchanged.
"""

import contextlib
import datetime
import logging
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxmedian.workers.collectives import PyTree


@contextlib.contextmanager
def serve(num_processes: int, deadline: float, port: int = 0) -> Iterator[str]:
    """Serves a lighthouse, the process that says who takes part in a step.

    It holds no state of the training: where it dies, start it anew at the same port.
    The command line ``torchft_lighthouse`` is the same.

    Args:
      num_processes: P. More than half of them are needed for a step.
      deadline: seconds to wait, from the first who is ready for a step on, for those
        whose heartbeat is heard; also seconds after which a silent one is dead.
      port: to listen at; 0 for any that is free.

    Yields:
      Its address, ``http://host:port``, for `run`.

    Raises:
      ImportError: without torchft.

    >>> import jaxmedian as jm
    >>> with jm.elastic.serve(3, deadline=5.0) as address:  # doctest: +SKIP
    ...     start_processes(address)
    """
    torchft = import_torchft()
    server = torchft.coordination.LighthouseServer(
        bind=f"[::]:{port}",
        min_replicas=majority_of(num_processes),
        join_timeout_ms=round(1000 * deadline),
        quorum_tick_ms=50,
        heartbeat_timeout_ms=round(1000 * deadline),
    )
    try:
        yield server.address()
    finally:
        server.shutdown()


def majority_of(num_processes: int) -> int:
    """Returns the least number of processes of which two groups share one.

    >>> majority_of(4), majority_of(5)
    (3, 3)
    """
    return num_processes // 2 + 1


class Meeting(NamedTuple):
    """The start of a step.

    Attributes:
      has_new_state: whether this process was behind and got a peer's state.
      is_new: whether the members are others than before.
    """

    has_new_state: bool
    is_new: bool


class NoQuorum(Exception):
    """Says why no majority met."""


class Peers:
    """The other processes, as far as they are there.

    Args:
      process: number of this one.
      num_processes: of all of them.
      lighthouse: its address.
      deadline: seconds that messages may take.
      hand_over: returns the state for a peer, a tree of arrays and plain values.
      take_over: takes the state of a peer.
    """

    def __init__(
        self,
        process: int,
        num_processes: int,
        lighthouse: str,
        deadline: float,
        hand_over: Callable[[], Any],
        take_over: Callable[[Any], None],
    ):
        """Connects to the lighthouse."""
        self._torchft = import_torchft()
        self._process, self._num_processes = process, num_processes
        self._lighthouse, self._deadline = lighthouse, deadline
        self._hand_over, self._take_over = hand_over, take_over
        self._has_new_state = False
        self._manager: Any = None
        self._step = 0

    @property
    def step(self) -> int:
        """The number of steps this process has taken."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        """Tells peers so; at step 0 this process gets the state of one further on."""
        self._step = step
        if self._manager is not None:
            self._manager.load_state_dict({"step": step, "batches_committed": 0})

    def meet(self, seconds: float) -> Meeting:
        """Waits for a majority, and for the others until the deadline.

        Raises:
          NoQuorum: if there was none for so many seconds.
        """
        self._has_new_state = False
        wait = datetime.timedelta(seconds=seconds)
        try:
            if self._manager is None:
                self._open()
            groups = self._group.number
            self._manager.start_quorum(timeout=wait)
        except Exception as error:  # each part of it fails in its own way
            self.close()
            raise NoQuorum(f"{type(error).__name__}: {str(error)[:300]}") from error
        if self._has_new_state:
            self._step = self._manager.current_step()
        return Meeting(self._has_new_state, self._group.number != groups)

    def gather(self, message: np.ndarray) -> list[np.ndarray] | None:
        """Returns what all members send, bytes of one length; None if one failed."""
        torch = self._torchft.torch
        mine = torch.from_numpy(message.copy())
        heard = [
            torch.empty_like(mine) for _ in range(self._manager.num_participants())
        ]
        try:
            options = torch.distributed.distributed_c10d.AllgatherOptions()
            self._group.allgather([heard], [mine], options).wait()
        except Exception as error:  # gloo's: a member died, or is late
            self._manager.report_error(error)
            return None
        return [one.numpy() for one in heard]

    def end_step(self, is_taken: bool) -> bool:
        """Ends a meeting; returns whether the step counts here."""
        if not is_taken:
            self._manager.report_error(RuntimeError("The step is not taken."))
        try:
            is_taken = self._manager.should_commit()
        except Exception:  # this process's own server, which a new manager replaces
            self.close()
            return False
        self._step = self._manager.current_step()
        return is_taken

    def close(self) -> None:
        """Leaves; `meet` comes back."""
        if self._manager is not None:
            with contextlib.suppress(Exception):
                self._manager.shutdown(wait=False)
            with contextlib.suppress(Exception):
                self._group.shutdown()
        self._manager = None

    def _open(self) -> None:
        torch = self._torchft.torch
        wait = datetime.timedelta(seconds=self._deadline)
        group_class = self._torchft.process_group.ProcessGroupGloo
        self._group = _numbered_group(group_class)(timeout=wait)
        host = socket.gethostname()  # where torchft has peers ask for a state too
        self._store = torch.distributed.TCPStore(
            host, 0, is_master=True, wait_for_workers=False
        )
        self._manager = self._torchft.Manager(
            pg=self._group,
            load_state_dict=self._load,
            state_dict=self._hand_over,
            min_replica_size=majority_of(self._num_processes),
            use_async_quorum=False,
            timeout=wait,  # longer for states, and who asks in vain would hold up all
            connect_timeout=wait,
            rank=0,
            world_size=1,
            store_addr=host,
            store_port=self._store.port,
            lighthouse_addr=self._lighthouse,
            replica_id=f"process_{self._process}",
            init_sync=False,
        )
        self.step = self._step

    def _load(self, state: PyTree) -> None:
        self._take_over(state)
        self._has_new_state = True


def _numbered_group(group_class: Any) -> Any:
    """Builds the class of groups that count how often they were formed anew."""

    def configure(self: Any, *args: Any, **kwargs: Any) -> None:
        self.number += 1
        group_class.configure(self, *args, **kwargs)

    members = {"number": 0, "configure": configure}
    return type("NumberedGroup", (group_class,), members)


def import_torchft() -> Any:
    """Imports torchft, and says what to install where that fails.

    Raises:
      ImportError: without torchft.
    """
    # Eight lines a step otherwise; it is read when torchft is imported.
    os.environ.setdefault("RUST_LOG", "error")
    try:
        import torch
        import torchft
        import torchft.coordination
        import torchft.process_group
    except ImportError as error:
        raise ImportError(
            f"`jm.elastic` needs torchft and PyTorch ({error}): "
            "`pip install './jaxmedian[elastic]'`. torchft has wheels for Linux on "
            "x86-64, Python 3.10 to 3.13 (0.2.0); elsewhere `jm.run(mesh=)` trains on "
            "several processes, none of which may die."
        ) from error
    for name in ("torchft_quorums", "torchft_commits", "torchft_errors", "torchft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torchft.torch = torch
    return torchft
