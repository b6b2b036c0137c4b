"""Eight virtual CPU devices, and a strict mode for jaxmedian's own arithmetic.

Most of the time goes into compiling. So programs are compiled in a hurry, unless
`JAX_DISABLE_MOST_OPTIMIZATIONS=0` asks for them as users have them, and are kept in
`.pytest_cache`, so that the second run in a checkout takes a third of the first.
"""

import gc
import os
import shutil
import zlib
from pathlib import Path

from compiling import xla_flags

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

gc.set_threshold(50_000)  # traced programs are many small objects, and few are garbage


def pytest_addoption(parser):
    """Lets each case run on one of two versions of JAX, beside the one of `uv.lock`."""
    parser.addoption(
        "--half",
        type=int,
        choices=(0, 1),
        help="run the first case of each test, and this half of its other cases",
    )


def pytest_collection_modifyitems(config, items):
    """Drops the cases of the other half; which one a case is in, its name decides."""
    half = config.getoption("half")
    if half is None:
        return
    seen, kept, dropped = set(), [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        is_kept = test not in seen or zlib.crc32(item.nodeid.encode()) % 2 == half
        (kept if is_kept else dropped).append(item)
        seen.add(test)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def pytest_sessionstart(session):
    """Drops the kept programs before they fill a disk; one process does."""
    folder = Path(__file__).parents[1] / ".pytest_cache/jax"
    size = sum(path.stat().st_size for path in folder.glob("*"))
    if size > 2**30 and not hasattr(session.config, "workerinput"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def few_objects_to_look_through():
    """Leaves what outlives a module out of later garbage collections.

    Programs are kept, millions of small objects: looking through all of them again and
    again took a fifth of the time.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def strict():
    """No implicit promotion; where the code of others needs it, use `promoting`."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def promoting():
    """Promotion as JAX's default has it, for optax's Adam and its like."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Resumed runs are the same programs again: compile each of them once."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
