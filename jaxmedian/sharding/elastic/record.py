"""Who took part in each step: enough to replay an elastic run on one device.

The parameters are a function of the start, the data and these masks. A hash that runs
along with them tells histories apart: two processes with the same hash at the same step
hold the same parameters, to the bit.
"""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HASH_BYTES = 16


class Record(NamedTuple):
    """The steps of an elastic run, the same on every process that ends it.

    Attributes:
      present: bool ``[steps, processes]``: whose workers counted.
      losses: float32 ``[steps]``, the mean over the workers present.

    >>> import numpy as np, jax, jax.numpy as jnp, jaxmedian as jm
    >>> present = np.array([[True, True], [True, False]])
    >>> record = jm.elastic.Record(present, np.zeros(2, np.float32))
    >>> record.worker_mask(num_workers=4).astype(int).tolist()
    [[1, 1, 1, 1], [1, 1, 0, 0]]

    The simulator replays the run, here two steps of a median of four numbers:

    >>> loss = lambda params, batch: 0.5 * (params - batch) ** 2
    >>> result = jm.run(
    ...     loss, jm.median_sgd(1.0), jnp.float32(0),
    ...     jm.full_batch(jnp.array([1., 2., 3., 4.])), 2, key=0, worker_chunk=1,
    ...     extra_args=record.as_extra_args(num_workers=4))
    >>> float(result.params)
    1.5
    """

    present: np.ndarray
    losses: np.ndarray

    def worker_mask(self, num_workers: int) -> np.ndarray:
        """Returns the ``worker_mask`` of every step, bool ``[steps, M]``.

        Raises:
          ValueError: if the processes cannot share M workers equally.
        """
        num_processes = self.present.shape[1]
        if num_workers < 1 or num_workers % num_processes:
            raise ValueError(
                f"`num_workers` must be a multiple of the {num_processes} processes; "
                f"got {num_workers}."
            )
        return np.repeat(self.present, num_workers // num_processes, axis=1)

    def as_extra_args(self, num_workers: int) -> jax.tree_util.Partial:
        """Returns the ``extra_args`` with which `jaxmedian.run` replays the run.

        It is for the steps of the record; later ones would repeat the last mask.

        Raises:
          ValueError: as `worker_mask`, and for a record without a step.
        """
        masks = jnp.asarray(self.worker_mask(num_workers))
        if not len(masks):
            raise ValueError("The record holds no step that could be replayed.")
        return jax.tree_util.Partial(_mask_of_step, masks)


def _mask_of_step(
    masks: jax.Array, key: jax.Array, step: jax.Array
) -> dict[str, jax.Array]:
    del key
    return {"worker_mask": masks[step]}


class History:
    """The record of a run that goes on, and its hash.

    Args:
      num_processes: of all of them.
      present: of the steps so far.
      losses: of the steps so far.
      digest: hash of the steps so far.
    """

    def __init__(
        self,
        num_processes: int,
        present: Any = (),
        losses: Any = (),
        digest: bytes = bytes(HASH_BYTES),
    ):
        """Starts at step 0, or where another history has come to."""
        self.num_processes = num_processes
        self._present: list[np.ndarray] = [np.asarray(row, np.bool_) for row in present]
        self._losses: list[float] = [float(loss) for loss in losses]
        self.digest = digest

    def add(self, present: np.ndarray, received: np.ndarray, loss: float) -> None:
        """Notes a step: who took part, what they told, and the loss."""
        hashed = hashlib.blake2b(self.digest, digest_size=HASH_BYTES)
        hashed.update(present.tobytes())
        hashed.update(np.ascontiguousarray(received).data)
        self.digest = hashed.digest()
        self._present.append(present)
        self._losses.append(loss)

    @property
    def num_steps(self) -> int:
        """The number of steps so far."""
        return len(self._losses)

    @property
    def last_loss(self) -> float:
        """The loss of the last step."""
        return self._losses[-1]

    @property
    def last_present(self) -> np.ndarray:
        """Who took part in the last step, bool ``[processes]``."""
        return self._present[-1]

    def record(self) -> Record:
        """Returns the steps so far."""
        present = np.asarray(self._present, np.bool_)
        return Record(
            present.reshape(-1, self.num_processes),
            np.asarray(self._losses, np.float32),
        )

    def as_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        record = self.record()
        return {
            "num_processes": self.num_processes,
            "num_steps": len(record.losses),
            "present": np.packbits(record.present).tobytes().hex(),
            "losses": record.losses.tobytes().hex(),
            "digest": self.digest.hex(),
        }

    @classmethod
    def from_json(cls, noted: dict[str, Any]) -> "History":
        """Reads what `as_json` wrote."""
        shape = noted["num_steps"], noted["num_processes"]
        packed = np.frombuffer(bytes.fromhex(noted["present"]), np.uint8)
        present = np.unpackbits(packed, count=shape[0] * shape[1]).reshape(shape)
        losses = np.frombuffer(bytes.fromhex(noted["losses"]), np.float32)
        return cls(shape[1], present, losses, bytes.fromhex(noted["digest"]))
