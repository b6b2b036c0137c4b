"""Report metrics at each chunk edge: call ``on_chunk``, move the progress bar."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmedian.workers.collectives import PyTree

Row = dict[str, Any]  # the metrics of one edge: floats, and NumPy arrays
OnChunk = Callable[..., bool | None]


def build_report(on_chunk: OnChunk | None) -> Callable[[int, Row, PyTree], bool]:
    """Builds ``(step, row, params) -> whether to stop`` from what the user gave.

    Raises:
      TypeError: if it is no function, or one of other arguments; when called, if the
        function returns anything but a bool or None.
    """
    if on_chunk is None:
        return lambda step, row, params: False
    if not callable(on_chunk):
        raise TypeError(
            "`on_chunk` must be a function (step, row) or (step, row, params); got "
            f"{on_chunk!r}."
        )
    call = _bind_arguments(on_chunk)
    name = getattr(on_chunk, "__qualname__", repr(on_chunk))

    def report(step: int, row: Row, params: optax.Params) -> bool:
        answer = call(step, row, params)
        if answer is None or isinstance(answer, bool | np.bool_):
            return bool(answer)
        raise TypeError(
            f"`on_chunk` must return True to stop the run, False or None to go on; "
            f"`{name}` returned {_shorten(answer)} at step {step}. Where the value of "
            "a logger is returned by the way, return None; wrap a condition in "
            "`bool(...)`."
        )

    return report


def _bind_arguments(on_chunk: OnChunk) -> Callable[[int, Row, PyTree], object]:
    """Finds out whether a function wants the parameters, and hands it copies."""
    if inspect.isbuiltin(on_chunk):  # may be silent about its arguments
        return lambda step, row, params: on_chunk(step, row)
    signature = inspect.signature(on_chunk)
    named = signature.parameters.get("params")
    if named is not None and named.kind in (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    ):
        return lambda step, row, params: on_chunk(step, row, params=_copy(params))
    for number in (2, 3):
        with contextlib.suppress(TypeError):
            signature.bind(*range(number))
            if number == 2:
                return lambda step, row, params: on_chunk(step, row)
            return lambda step, row, params: on_chunk(step, row, _copy(params))
    raise TypeError(
        "`on_chunk` must take (step, row) or (step, row, params); "
        f"got a function of {signature}."
    )


def _copy(params: optax.Params) -> PyTree:
    """Copies parameters, which the next chunk would otherwise overwrite."""
    return jax.tree.map(jnp.copy, params)


def _shorten(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


@contextlib.contextmanager
def progress_bar(
    start: int, total: int, shown: bool
) -> Iterator[Callable[[int, Row], None]]:
    """Yields a function that moves a progress bar to a step, if it is shown."""
    if not shown:
        yield lambda step, numbers: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError(
            "`progress=True` needs tqdm: `pip install tqdm`, or leave it out."
        ) from error
    with tqdm(initial=start, total=total, unit="step") as bar:

        def move(step: int, numbers: Row) -> None:
            texts = {name: f"{value:.4g}" for name, value in numbers.items()}
            bar.set_postfix(texts, refresh=False)
            bar.update(step - bar.n)

        yield move
