"""Runs that are killed and resumed end with the bits of runs that nobody touched."""

import errno
import functools
import hashlib
import inspect
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop_on_mesh import train_on_mesh

import jaxmedian as jm
from experiments.systems import killable
from jaxmedian.checkpoint import storage
from jaxmedian.checkpoint.locks import FolderLock
from jaxmedian.training import resume
from tests.support.harness import enable_x64

pytest.importorskip("orbax.checkpoint")
pytestmark = pytest.mark.usefixtures("compiled_once")

bits = killable.bits


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].tobytes() == array.tobytes(), name


def fingerprint(folder):
    """Names and contents of all files below a folder."""
    files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def steps_in(folder):
    return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())


# --- kills ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken():
    """The run without any checkpoint."""
    return bits(killable.train())


def start_killable(folder):
    """Starts the same run in another process, slow enough to be caught anywhere."""
    command = [sys.executable, "-m", "experiments.systems.killable"]
    return subprocess.Popen(
        [*command, "--folder", str(folder), "--pause", "0.05"],
        stdout=subprocess.PIPE,
        cwd=pathlib.Path(jm.__file__).parents[1],
        text=True,
    )


@pytest.mark.usefixtures("promoting")
def test_a_kill_at_any_moment_leaves_a_run_that_resumes_to_the_bit(tmp_path, unbroken):
    """A stopped process leaves on disk what a killed one would: many kills in one."""
    process = start_killable(tmp_path / "run")
    rng = np.random.default_rng(0)
    copies = []
    assert [process.stdout.readline() for _ in range(2)] == ["edge 0\n", "edge 4\n"]
    while process.poll() is None and len(copies) < 3:
        time.sleep(rng.uniform(0, 0.25))
        os.kill(process.pid, signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)  # until all threads stand
        assert os.WIFSTOPPED(status), "the run ended before it could be stopped"
        copies.append(tmp_path / f"kill {len(copies)}")
        shutil.copytree(tmp_path / "run", copies[-1])
        os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(copies) == 3
    for copy in (*copies, tmp_path / "run"):  # the last was killed in earnest
        assert_same_bits(bits(killable.train(checkpoint=copy)), unbroken)
        assert steps_in(copy) == [60]
        assert not [name for name in os.listdir(copy) if "tmp" in name]


# --- stops and resumes ----------------------------------------------------------------

RATE, M, SAMPLES = 0.05, 3, 8


def loss_fn(params, batch):
    return 0.5 * jnp.mean(jnp.square(batch @ params["w"] + params["b"]))


def start(features=2):
    return {"b": jnp.float32(0.5), "w": jnp.arange(1.0, features + 1)}


def train(num_steps=10, *, key=2, noise_key=1, features=2, calls=None, **options):
    """A run that compiles quickly; ``calls`` notes each tracing of the batch."""
    data = np.random.default_rng(0).normal(size=(M, SAMPLES, features))
    draw = jm.mini_batches(data.astype(np.float32), 4)

    def next_batch(key, step):
        if calls is not None:
            calls.append(step)
        return draw(key, step)

    optimizer = optax.chain(
        jm.majority_vote(key=noise_key, ties="random"), optax.sgd(RATE, momentum=0.9)
    )
    options = {"chunk": 4} | options
    params = start(features)
    return jm.run(loss_fn, optimizer, params, next_batch, num_steps, key, **options)


@pytest.fixture(scope="module")
def whole():
    """Ten steps in chunks of four, without checkpoints."""
    return bits(train())


def stop_at(step):
    return lambda here, row: here >= step


def test_a_run_from_other_parameters_says_that_it_goes_on_from_its_own(tmp_path):
    """A sweep over starts with one folder would get one result, silently."""

    def run_from(place, num_steps=2):
        loss = lambda params, batch: 0.5 * (params - batch) ** 2  # noqa: E731
        batches = jm.full_batch(jnp.array([1.0, 2.0, 10.0]))
        args = (loss, jm.sign_sgd(0.5), jnp.float32(place), batches, num_steps, 0)
        return float(jm.run(*args, chunk=2, checkpoint=tmp_path).params)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_from(0) == run_from(0) == 1
    for _ in range(2):  # what is noted is the first start
        with pytest.warns(UserWarning, match="started from other `params` than"):
            assert run_from(7, num_steps=4) == 2


def test_a_stopped_run_goes_on_and_a_finished_one_returns_at_once(
    tmp_path, whole, capsys
):
    first = train(checkpoint=tmp_path, on_chunk=stop_at(4))
    assert first.step == 4
    assert capsys.readouterr().err == ""
    seen = []
    second = train(checkpoint=tmp_path, on_chunk=lambda step, row: seen.append(step))
    assert seen == [8, 10]  # not the edge it resumed at
    assert_same_bits(bits(second), whole)
    assert f"Resuming at step 4 from {tmp_path}" in capsys.readouterr().err
    before, calls = fingerprint(tmp_path), []
    third = train(checkpoint=tmp_path, calls=calls, on_chunk=seen.append)
    assert_same_bits(bits(third), whole)
    assert calls == []  # nothing was traced, nothing trained
    assert fingerprint(tmp_path) == before


def test_arrays_among_the_metrics_go_on_too(tmp_path):
    def measure(params, grads, updates):
        return {"sample": jm.diagnostics.sample_coordinates(grads, 3, key=0)}

    whole = train(metrics=[measure])
    train(metrics=[measure], checkpoint=tmp_path, on_chunk=stop_at(4))
    resumed = train(metrics=[measure], checkpoint=tmp_path)
    assert resumed.metrics["sample"].shape == (3, M, 3)
    assert_same_bits(bits(resumed), bits(whole))


def test_empty_arrays_among_the_metrics_and_numbers_of_numpy_go_on_too(tmp_path):
    def shapes(params, grads, updates):
        return {"none": jnp.zeros((0, 3)), "one": jnp.zeros((1, 0), jnp.int32)}

    options = {"metrics": [shapes], "checkpoint": tmp_path, "chunk": np.int64(4)}
    train(8, **options)
    metrics = train(np.int64(10), **options).metrics
    assert metrics["none"].shape == (3, 0, 3)
    assert metrics["one"].shape == (3, 1, 0)
    assert metrics["one"].dtype == np.int32


def test_arrays_among_the_metrics_of_older_checkpoints_are_read():
    """Those nested their lists and named no shape."""
    row = resume._from_json(
        {"loss": 0.5, "sample": ["float32", [[1.0, 2.0], [3.0, 4.0]]]}
    )
    assert row["loss"] == 0.5
    assert row["sample"].dtype == np.float32
    assert row["sample"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_ctrl_c_and_errors_leave_a_run_that_resumes(tmp_path, whole, error):
    def on_chunk(step, row):
        if step == 8:
            raise error

    if error is KeyboardInterrupt:
        assert train(checkpoint=tmp_path, on_chunk=on_chunk).step == 8
        assert steps_in(tmp_path) == [8]  # the edge it returned
    else:
        with pytest.raises(RuntimeError):
            train(checkpoint=tmp_path, on_chunk=on_chunk)
        assert steps_in(tmp_path) == [4]
    assert_same_bits(bits(train(checkpoint=tmp_path)), whole)


def test_more_steps_may_be_asked_for(tmp_path, whole):
    """A run of 6 ends off the grid of 4; that edge is none of the longer run's."""
    short = train(6, checkpoint=tmp_path)
    assert short.metrics["step"].tolist() == [4, 6]
    longer = train(10, checkpoint=tmp_path)
    assert longer.metrics["step"].tolist() == [4, 8, 10]
    assert_same_bits(bits(longer), whole)
    with pytest.raises(ValueError, match="beyond `num_steps` 6: raise it"):
        train(6, checkpoint=tmp_path)


def test_a_folder_says_how_often_to_save_and_how_many_to_keep(tmp_path, whole):
    folder = jm.checkpoint.Folder(tmp_path / "deep" / "few", every=2, keep=2)
    seen = []

    def on_chunk(step, row):
        seen.append(steps_in(folder.path))
        time.sleep(0.3)  # the checkpoint begun before is whole by then

    result = train(checkpoint=folder, chunk=2, on_chunk=on_chunk)  # edges 2 4 6 8 10
    assert steps_in(folder.path) == [8, 10]
    assert max(map(len, seen)) <= 2
    assert not any(set(steps) & {2, 6} for steps in seen)
    assert result.params["w"].tobytes() == whole["[0]['w']"].tobytes()


def test_progress_goes_on_where_the_run_does(tmp_path, capsys):
    pytest.importorskip("tqdm")
    train(checkpoint=tmp_path, on_chunk=stop_at(8))
    train(checkpoint=tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "8/10" in shown
    assert "10/10" in shown


# --- refusals -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """A folder with the checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("half") / "run"
    train(checkpoint=folder, on_chunk=stop_at(4))
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": 3}, "another run: it differs in key"),
        ({"noise_key": 3}, "another run: it differs in keys of the optimizer"),
        ({"chunk": 5}, r"differs in chunk \(4 there, 5 here\)"),
        (
            {"features": 3},
            r"\['w'\]` is float32 \(2,\) there, float32 \(3,\) here.*another folder",
        ),
        (
            {"metrics": [lambda params, grads, updates: {"one": jnp.float32(1)}]},
            r"What is measured must be .* differ in \['one'\]. Restore `metrics`",
        ),
        (
            {"worker_chunk": 1},
            "differ in .*'mean_median_gap'.*`worker_chunk` .streamed gradients are",
        ),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(half_done, options, message):
    before = fingerprint(half_done)
    with pytest.raises(ValueError, match=message):
        train(checkpoint=half_done, **options)
    assert fingerprint(half_done) == before


CHAINS = {
    "vote": lambda: jm.majority_vote(key=1, ties="random"),
    "median": lambda: jm.coordinate_median(jm.noise.uniform(0.1), 1),
    "other ties": lambda: jm.majority_vote(jm.noise.uniform(0.1), 1, ties="positive"),
    "noisy vote": lambda: jm.majority_vote(jm.noise.uniform(0.1), 1),
    "other law": lambda: jm.majority_vote(jm.noise.gaussian(0.1), 1),
    "other coupling": lambda: jm.majority_vote(jm.noise.uniform(0.1, "systematic"), 1),
    "other scale": lambda: jm.majority_vote(jm.noise.uniform(0.5), 1),
    "other transport": lambda: jm.majority_vote(
        jm.noise.uniform(0.1), 1, ties="positive", transport="packed"
    ),
}


def run_chain(name, num_steps, folder, rate=0.1, **options):
    optimizer = optax.chain(CHAINS[name](), optax.sgd(rate, momentum=0.9, **options))
    batches = jm.full_batch(jnp.ones((3, 2)))

    def loss(params, batch):
        return jnp.mean((params - batch) ** 2)

    start = jnp.zeros(2)
    return jm.run(loss, optimizer, start, batches, num_steps, 0, checkpoint=folder)


@pytest.mark.parametrize(
    ("saved", "resumed", "message"),
    [
        ("noisy vote", "median", r"majority_vote > trace.* there, coordinate_median"),
        ("noisy vote", "other ties", r"`ties` of majority_vote \('zero' there, 'posi"),
        ("noisy vote", "other law", r"`law` of majority_vote \('uniform' there, 'gau"),
        ("noisy vote", "other coupling", r"`coupling` of majority_vote \('independ"),
        ("vote", "noisy vote", r"`law` of majority_vote \('none' there, 'uniform'"),
    ],
)
def test_a_vote_does_not_go_on_as_a_median(tmp_path, saved, resumed, message):
    run_chain(saved, 2, tmp_path)
    before = fingerprint(tmp_path)
    with pytest.raises(ValueError, match=f"another run: it differs in .*{message}"):
        run_chain(resumed, 4, tmp_path)
    assert fingerprint(tmp_path) == before


def test_flags_of_optax_are_compared_and_numbers_are_not(tmp_path):
    run_chain("noisy vote", 2, tmp_path)
    with pytest.raises(ValueError, match=r"`nesterov` of trace \(False there, True"):
        run_chain("noisy vote", 4, tmp_path, nesterov=True)
    assert run_chain("other scale", 4, tmp_path, rate=0.5).step == 4


def test_a_state_of_each_worker_does_not_go_on_as_their_mean(tmp_path, monkeypatch):
    """The same leaves serve both; older checkpoints did not note which it was."""

    def counted(params, seen, batch):
        return jnp.mean((params - batch) ** 2), seen + 1.0

    def go(num_steps, kind, folder):
        options = {"model_state": jnp.zeros(M), "state_over_workers": kind}
        batches = jm.full_batch(jnp.ones((M, 2)))
        start, chain = jnp.zeros(2), jm.median_sgd(0.1)
        options |= {"chunk": 2, "checkpoint": tmp_path / folder}
        return jm.run(counted, chain, start, batches, num_steps, 0, **options)

    go(2, "per_worker", "new")
    with pytest.raises(ValueError, match=r"`state_over_workers` \(per_worker there"):
        go(4, "mean", "new")

    def write_as_before(store, step, state, notes):
        del notes["run"]["`state_over_workers`"]
        write_state(store, step, state, notes)

    write_state = resume.write_state
    monkeypatch.setattr(resume, "write_state", write_as_before)
    go(2, "per_worker", "old")
    monkeypatch.undo()
    assert go(4, "per_worker", "old").model_state.tolist() == [4.0] * M


def test_what_crosses_the_mesh_is_not_compared(tmp_path):
    run_chain("other ties", 2, tmp_path)
    assert run_chain("other transport", 4, tmp_path).step == 4


def test_other_states_are_refused_leaf_by_leaf(tmp_path):
    jm.checkpoint.save(tmp_path, 1, {"a": jnp.zeros(2), "b": jax.random.key(0)})
    for other, message in (
        ({"a": jnp.zeros(2)}, r"`state\['b'\]` is key<fry> \(\) there, absent here"),
        (
            {"a": jnp.zeros(2, jnp.bfloat16), "b": jax.random.key(0)},
            r"`state\['a'\]` is float32 \(2,\) there, bfloat16 \(2,\) here",
        ),
        (
            {"a": jnp.zeros(2), "b": jax.random.key(0, impl="rbg")},
            r"`state\['b'\]` is key<fry> \(\) there, key<rbg> \(\) here",
        ),
        ([jnp.zeros(2), jax.random.key(0)], r"`state\[0\]` is absent there"),
    ):
        with pytest.raises(ValueError, match=message):
            jm.checkpoint.restore(tmp_path, other)
    with pytest.raises(ValueError, match=r"another training loop, not of `jm\.run`"):
        train(checkpoint=tmp_path)


def try_to_restore(folder, like):
    """Returns the state, or what was wrong with it."""
    try:
        return jm.checkpoint.restore(folder, like)[1], ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["cut", "removed", "flipped"])
def test_damage_is_noticed_or_harmless_and_never_overwritten(
    tmp_path, half_done, damage
):
    """Each file in turn; what orbax keeps twice may be lost, bits may not change."""
    state = train(0)
    like = (state.params, state.opt_state)
    _, good = jm.checkpoint.restore(half_done, like)
    names, noticed = fingerprint(half_done), []
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        shutil.copytree(half_done, folder)
        data = (half_done / name).read_bytes()
        middle = len(data) // 2
        if damage == "cut":
            (folder / name).write_bytes(data[:middle])
        elif damage == "flipped":
            flipped = bytes([data[middle] ^ 0x10])
            (folder / name).write_bytes(data[:middle] + flipped + data[middle + 1 :])
        else:
            (folder / name).unlink()
        before = fingerprint(folder)
        read, complaint = try_to_restore(folder, like)
        if complaint:
            assert str(folder / "4") in complaint
            assert "Remove it to go on from an older one" in complaint
            noticed.append(name)
        else:
            assert_same_bits(
                bits(jm.RunResult(*read, {}, 4)),
                bits(jm.RunResult(*good, {}, 4)),
            )
        assert fingerprint(folder) == before
    assert any("notes" in name for name in noticed)
    assert any("arrays" in name for name in noticed)
    spoilt = tmp_path / str(list(names).index(noticed[-1]))
    before = fingerprint(spoilt)
    with pytest.raises(ValueError, match="is not a whole checkpoint of jaxmedian"):
        train(checkpoint=spoilt)
    assert fingerprint(spoilt) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_bit_of_an_array_is_noticed(tmp_path):
    """Large arrays lie in files that orbax reads without a checksum of its own."""
    state = jax.random.normal(jax.random.key(0), (20_000,))
    jm.checkpoint.save(tmp_path, 1, state)
    largest = max(tmp_path.rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x10
    largest.write_bytes(data)
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        jm.checkpoint.restore(tmp_path, jnp.zeros(20_000))


def test_folders_of_others_are_refused_and_left_alone(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    foreign = tmp_path / "orbax"
    with orbax.CheckpointManager(foreign) as manager:
        manager.save(4, args=orbax.args.StandardSave({"w": jnp.zeros(2)}))
    (tmp_path / "torch" / "7").mkdir(parents=True)
    (tmp_path / "torch" / "7" / "model.pt").write_text("weights")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("read")
    (tmp_path / "file").write_text("read")
    for name, message in (
        ("orbax", r"holds what is no checkpoint: 4\..*empty or does not exist"),
        ("torch", r"holds what is no checkpoint: 7\..*empty or does not exist"),
        ("notes", r"holds what is no checkpoint: todo\.txt.*empty or does not exist"),
        ("file", "is a file: checkpoints need a folder of their own"),
    ):
        before = fingerprint(tmp_path)
        with pytest.raises(ValueError, match=message):
            train(checkpoint=tmp_path / name)
        with pytest.raises(ValueError, match=message):
            jm.checkpoint.save(tmp_path / name, 100, jnp.zeros(2))
        assert fingerprint(tmp_path) == before
    for name in ("orbax", "torch"):
        with pytest.raises(ValueError, match="not a whole checkpoint of jaxmedian"):
            jm.checkpoint.restore(tmp_path / name, jnp.zeros(2))
    with pytest.raises(ValueError, match="is a file: checkpoints need a folder"):
        jm.checkpoint.restore(tmp_path / "file", jnp.zeros(2))


def test_folders_of_data_that_numbers_name_are_not_removed(tmp_path):
    """As old checkpoints would be: ten classes of images, 0 to 9."""
    for name in range(10):
        (tmp_path / str(name)).mkdir()
        (tmp_path / str(name) / "image.png").write_bytes(b"pixels")
    before = fingerprint(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint: 0, 1, 2, 3, 4\. Nothing was"):
        jm.checkpoint.save(tmp_path, 100, jnp.zeros(2))
    assert fingerprint(tmp_path) == before


def test_what_a_kill_left_of_a_step_that_was_being_removed_is_no_obstacle(tmp_path):
    jm.checkpoint.save(jm.checkpoint.Folder(tmp_path, keep=2), 1, jnp.zeros(2))
    jm.checkpoint.save(jm.checkpoint.Folder(tmp_path, keep=2), 2, jnp.ones(2))
    shutil.rmtree(tmp_path / "1" / "notes")
    jm.checkpoint.save(tmp_path, 3, jnp.full(2, 3.0))
    step, state = jm.checkpoint.restore(tmp_path, jnp.zeros(2))
    assert (step, state.tolist()) == (3, [3.0, 3.0])


def test_a_full_disk_is_named_and_locks_nothing(tmp_path, monkeypatch):
    """Neither what holds the lock's name fits, nor then a checkpoint."""
    jm.checkpoint.save(tmp_path, 1, jnp.zeros(2))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("jaxmedian.checkpoint.locks.os.write", full)
        jm.checkpoint.save(tmp_path, 2, jnp.ones(2))
    with monkeypatch.context() as patched:
        patched.setattr("orbax.checkpoint.CheckpointManager.save", full)
        with pytest.raises(OSError, match="no space left for a checkpoint") as error:
            jm.checkpoint.save(tmp_path, 3, jnp.ones(2))
    assert error.value.filename == str(tmp_path)
    assert jm.checkpoint.restore(tmp_path, jnp.zeros(2))[0] == 2
    jm.checkpoint.save(tmp_path, 3, jnp.ones(2))
    assert jm.checkpoint.restore(tmp_path, jnp.zeros(2))[0] == 3


@pytest.mark.parametrize("kind", ["moved", "unlocked"])
def test_a_folder_that_is_moved_in_mid_run_is_named(kind, tmp_path, whole):
    folder, moved = tmp_path / "run", tmp_path / "moved"

    def on_chunk(step, row):
        if step == 8 and kind == "moved":
            folder.rename(moved)
        elif step == 8:
            (folder / ".in-use").unlink()

    with pytest.raises(FileNotFoundError, match="moved or removed in mid-run") as error:
        train(checkpoint=folder, on_chunk=on_chunk)
    assert error.value.filename == str(folder)
    place = moved if kind == "moved" else folder
    assert_same_bits(bits(train(checkpoint=place)), whole)


def test_a_lock_that_another_took_over_is_left_to_it(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lock = FolderLock(folder)
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    other = FolderLock(folder)
    lock.release()
    assert os.listdir(folder) == [".in-use"]
    with pytest.raises(RuntimeError, match="is in use by process"):
        FolderLock(folder)
    other.release()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_folder_is_refused_before_training(
    number, tmp_path, monkeypatch, whole
):
    """But not where nothing is left to write."""
    train(checkpoint=tmp_path / "done")
    train(checkpoint=tmp_path / "half", on_chunk=stop_at(4))

    def refuse(*args, **kwargs):
        raise OSError(number, "no")

    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(storage.tempfile, "TemporaryFile", refuse)
        assert_same_bits(bits(train(checkpoint=tmp_path / "done")), whole)
        for name in ("half", "new"):
            with pytest.raises(OSError, match="give another folder, or") as error:
                train(checkpoint=tmp_path / name, calls=calls)
            assert error.value.errno == number
            assert error.value.filename == str(tmp_path / name)
    assert not calls
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", refuse)
    with pytest.raises(OSError, match="give another folder, or"):
        jm.checkpoint.save(tmp_path / "new", 1, jnp.zeros(2))


def test_a_masked_array_is_refused(tmp_path):
    masked = np.ma.masked_array([1.0, 2.0], [True, False])
    with pytest.raises(TypeError, match=r"would lose the mask of `state\['w'\]`"):
        jm.checkpoint.save(tmp_path, 1, {"w": masked})


def test_saving_never_goes_back(tmp_path):
    jm.checkpoint.save(tmp_path, 5, jnp.zeros(2))
    for step in (3, 5):
        with pytest.raises(ValueError, match="already holds a checkpoint of step 5"):
            jm.checkpoint.save(tmp_path, step, jnp.ones(2))
    assert jm.checkpoint.restore(tmp_path, jnp.ones(2))[1].tolist() == [0, 0]


def test_bad_folders_are_refused():
    with pytest.raises(TypeError, match="`checkpoint` must be the path of a folder"):
        train(checkpoint=True)
    with pytest.raises(ValueError, match="`every` must be at least 1; got 0"):
        jm.checkpoint.Folder("here", every=0)
    with pytest.raises(TypeError, match=r"`keep` must be an int; got 1\.0"):
        jm.checkpoint.Folder("here", keep=1.0)
    with pytest.raises(ValueError, match="`step` must be at least 0; got -1"):
        jm.checkpoint.save("here", -1, jnp.zeros(2))


def test_without_orbax_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxmedian\[checkpoint\]'"):
        train(checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- states ---------------------------------------------------------------------------


def test_every_kind_of_leaf_survives(tmp_path):
    rng = np.random.default_rng(0)
    state = {
        "keys": (jax.random.key(3), jax.random.split(jax.random.key(4, impl="rbg"), 2)),
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
        "odd": jnp.float32([np.nan, -0.0, np.inf, 1e-45]),
        "flags": jnp.array([True, False]),
        "legacy": jax.random.PRNGKey(7),
        "none": jnp.zeros((0, 3)),
        "weak": jnp.full((2,), 0.5),
        "number": 3,
        "numpy": rng.normal(size=3).astype(np.float32),
        "a/b [c]": optax.EmptyState(),
    }
    jm.checkpoint.save(tmp_path, 0, state)
    blank = jax.tree.map(lambda leaf: leaf, state) | {"weak": jnp.full((2,), 0.0)}
    step, read = jm.checkpoint.restore(str(tmp_path), blank)
    assert step == 0
    assert jax.tree.structure(read) == jax.tree.structure(state)
    assert read["keys"][1].dtype == state["keys"][1].dtype
    assert read["weak"].weak_type
    assert not read["odd"].weak_type
    assert not read["odd"].committed
    assert type(read["number"]) is int
    assert read["number"] == 3
    words = functools.partial(jax.tree.map, np.asarray)
    for name in state.keys() - {"keys"}:
        got, expected = words(read[name]), words(state[name])
        if name not in ("a/b [c]", "number"):
            assert got.tobytes() == np.asarray(jnp.asarray(expected)).tobytes(), name
    for got, key in zip(read["keys"], state["keys"], strict=True):
        drawn = jax.random.key_data(got), jax.random.key_data(key)
        np.testing.assert_array_equal(*drawn)


def test_numbers_that_jax_would_round_come_back_whole(tmp_path):
    """64 bits without x64, byte orders, Python's own: every digit, and their type."""
    state = {
        "tokens": np.int64(5_000_000_000),
        "best": np.float64(0.123456789012345),
        "wide": np.array([[1e300, -0.0, np.nan]]),
        "unsigned": np.array([2**64 - 1], np.uint64),
        "complex": np.array([1e-300 + 1j]),
        "swapped": np.array([1.5, 1e-45], ">f4"),
        "python": (3, 5_000_000_000, 0.1, True, 0.1 + 1e-17j),
        "none": np.zeros((0, 2)),
    }
    blank = jax.tree.map(np.zeros_like, state)
    blank["python"] = (0, 0, 0.0, False, 0j)
    jm.checkpoint.save(tmp_path, 1, state)
    _, read = jm.checkpoint.restore(tmp_path, blank)
    assert read.pop("python") == state.pop("python")
    for name, expected in state.items():
        assert isinstance(read[name], np.ndarray), name
        assert read[name].dtype == expected.dtype, name
        assert read[name].shape == expected.shape, name
        assert read[name].tobytes() == expected.tobytes(), name
    types = [type(x) for x in jm.checkpoint.restore(tmp_path, blank)[1]["python"]]
    assert types == [int, int, float, bool, complex]


def test_wide_numbers_are_numpys_with_and_without_x64(tmp_path):
    jm.checkpoint.save(tmp_path / "numpy", 1, np.float64(0.1))
    with enable_x64(True):
        _, read = jm.checkpoint.restore(tmp_path / "numpy", np.float64(0))
        assert isinstance(read, np.ndarray)
        assert float(read) == 0.1
        jm.checkpoint.save(tmp_path / "jax", 1, jnp.float64(0.1))
        assert jm.checkpoint.restore(tmp_path / "jax", jnp.float64(0))[1] == 0.1
    with pytest.raises(
        ValueError, match=r"is float64 \(\) there, numpy float64 \(\) h"
    ):
        jm.checkpoint.restore(tmp_path / "jax", np.float64(0))


@pytest.mark.parametrize("leaf", ["text", b"bytes", np.datetime64("2020-01-01"), 2**70])
def test_what_is_no_array_is_refused_by_name(tmp_path, leaf):
    with pytest.raises(TypeError, match=r"arrays, keys and numbers; `state\['a'\]` is"):
        jm.checkpoint.save(tmp_path, 1, {"a": leaf})


def test_the_words_of_keys_pass_through_other_serialisers():
    """The two functions of the module's docstring, read from there."""
    serialization = pytest.importorskip("flax.serialization")
    recipe = inspect.getdoc(jm.checkpoint).split("plain arrays only")[1]
    code = [line[4:] for line in recipe.split("\n") if line.startswith("    ")]
    functions = {"jax": jax}
    exec("\n".join(code), functions)
    state = jm.noisy_sign_sgd(0.1, jm.noise.gaussian(0.1), key=3).init(jnp.zeros(2))
    words = jax.tree.map(functions["words"], state)
    read = serialization.from_bytes(words, serialization.to_bytes(words))
    got = jax.tree.map(functions["wrapped"], read, state)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    draws = [jax.random.bits(s[0].rng_key, (4,)) for s in (got, state)]
    np.testing.assert_array_equal(*draws)


def test_a_state_without_arrays_and_a_single_array_are_states_too(tmp_path):
    jm.checkpoint.save(tmp_path / "none", 2, optax.EmptyState())
    assert jm.checkpoint.restore(tmp_path / "none", optax.EmptyState())[0] == 2
    jm.checkpoint.save(tmp_path / "one", 2, jnp.float32(0.1))
    assert jm.checkpoint.restore(tmp_path / "one", jnp.float32(0)) == (2, 0.1)


def test_a_folder_is_read_while_another_process_writes_there(tmp_path):
    jm.checkpoint.save(tmp_path, 1, jnp.zeros(2))
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    assert jm.checkpoint.restore(tmp_path, jnp.ones(2))[0] == 1
    assert unfinished.exists()  # a reader removes nothing
    jm.checkpoint.save(tmp_path, 2, jnp.ones(2))
    assert steps_in(tmp_path) == [2]
    assert not unfinished.exists()  # a writer does


def test_a_checkpoint_that_a_writer_removes_is_read_no_more_than_the_next(
    tmp_path, monkeypatch
):
    """Its writer saves another between the reader's look and its reading."""
    read_notes, open_store = storage.Store.read_notes, storage.Store.__init__
    latest_step = storage.Store.latest_step
    saves = iter((2, 3))

    def late(store, step):
        if (newer := next(saves, None)) is not None:
            jm.checkpoint.save(tmp_path, newer, jnp.full(2, float(newer)))
        return read_notes(store, step)

    def racing(store, path, keep):  # orbax asks when an older one was made
        if keep is None and failures:
            raise failures.pop()
        open_store(store, path, keep)

    def blind(store):
        return None if unseen and unseen.pop() else latest_step(store)

    jm.checkpoint.save(tmp_path, 1, jnp.ones(2))
    failures, unseen = [FileNotFoundError("1")], [True]
    monkeypatch.setattr(storage.Store, "read_notes", late)
    monkeypatch.setattr(storage.Store, "__init__", racing)
    monkeypatch.setattr(storage.Store, "latest_step", blind)
    step, state = jm.checkpoint.restore(tmp_path, jnp.zeros(2))
    assert (step, state.tolist()) == (3, [3.0, 3.0])
    assert not failures + unseen
    shutil.rmtree(tmp_path / "3" / "notes")  # damaged in earnest
    with pytest.raises(ValueError, match="3 is not a whole checkpoint"):
        jm.checkpoint.restore(tmp_path, jnp.zeros(2))


# --- two writers ----------------------------------------------------------------------


def test_runs_in_two_threads_save_in_folders_of_their_own(tmp_path):
    """At the same moments: each ends with its own bits, on disk too."""
    keys = {1: 2, 3: 4}
    alone = {noise: train(noise_key=noise, key=key) for noise, key in keys.items()}
    together = threading.Barrier(2, timeout=60)

    def go(noise):
        folder = jm.checkpoint.Folder(tmp_path / str(noise), keep=2)
        return train(
            noise_key=noise,
            key=keys[noise],
            chunk=1,
            checkpoint=folder,
            on_chunk=lambda step, row: together.wait() > 2,
        )

    with ThreadPoolExecutor(2) as threads:
        results = dict(zip(keys, threads.map(go, keys), strict=True))
    for noise, result in results.items():
        expected = [(leaf.params, leaf.opt_state) for leaf in (alone[noise], result)]
        step, state = jm.checkpoint.restore(tmp_path / str(noise), expected[0])
        assert step == 10
        for tree in (expected[1], state):
            for got, wanted in zip(*map(leaf_words, (tree, expected[0])), strict=True):
                np.testing.assert_array_equal(got, wanted)


def leaf_words(tree):
    """The numbers of all leaves, of keys their words."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves = jax.tree.leaves(tree)
    return [jax.random.key_data(x) if is_key(x) else x for x in leaves]


def test_a_run_inside_a_run_saves_too(tmp_path, whole):
    """It waits for a save of the outer one, which nobody else would end."""

    alone = train().params["w"]

    def on_chunk(step, row):
        inner = train(checkpoint=tmp_path / f"inner {step}", chunk=2)
        np.testing.assert_array_equal(inner.params["w"], alone)

    result = train(checkpoint=tmp_path / "outer", on_chunk=on_chunk)
    assert_same_bits(bits(result), whole)
    assert steps_in(tmp_path / "inner 4") == [10]


def test_forked_children_do_not_hold_the_folder_of_a_killed_run(tmp_path):
    lock = FolderLock(tmp_path)
    here, there = socket.socketpair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX's threads: the child uses none
        child = os.fork()
    if not child:
        there.send(b"forked")
        there.recv(1)
        os._exit(0)
    try:
        here.recv(6)
        os.close(lock._file)  # which is all that a kill does
        lock._file = None
        FolderLock(tmp_path).release()
    finally:
        here.send(b".")
        os.waitpid(child, 0)
        here.close()
        there.close()


def test_who_holds_a_folder_after_a_process_is_told(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = FolderLock(tmp_path)
    for host, is_seen in ((socket.gethostname(), True), ("elsewhere", False)):
        (tmp_path / ".in-use").write_text(f"process {ended.pid} on {host}\n")
        with pytest.raises(RuntimeError, match=f"process {ended.pid} on") as error:
            FolderLock(tmp_path)
        assert ("that process has ended" in str(error.value)) == is_seen
    lock.release()


def test_a_folder_in_use_is_refused_whoever_uses_it(tmp_path, whole):
    """By another run of this process, and by a loop that saves for itself."""
    complaints = []

    def on_chunk(step, row):
        for intrude in (
            lambda: train(key=3, checkpoint=tmp_path),
            lambda: jm.checkpoint.save(tmp_path, 100, jnp.zeros(2)),
        ):
            with pytest.raises(RuntimeError, match="is in use by process") as error:
                intrude()
            complaints.append(str(error.value))
        assert jm.checkpoint.restore(tmp_path, empty)[0] < step  # reading is free

    state = train(0)
    empty = (state.params, state.opt_state)
    result = train(checkpoint=tmp_path, on_chunk=on_chunk)
    assert_same_bits(bits(result), whole)
    assert len(complaints) == 6
    assert f"process {os.getpid()} on " in complaints[0]
    assert "give another folder" in complaints[0]
    assert [name for name in os.listdir(tmp_path) if not name.isdecimal()] == []
    assert_same_bits(bits(train(checkpoint=tmp_path)), whole)


def test_two_processes_on_one_folder_do_not_lose_a_run(tmp_path):
    first = start_killable(tmp_path)
    try:
        assert [first.stdout.readline() for _ in range(2)] == ["edge 0\n", "edge 4\n"]
        with pytest.raises(RuntimeError, match=f"in use by process {first.pid} on"):
            train(checkpoint=tmp_path)
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert ".in-use" in os.listdir(tmp_path)  # the killed one left it: no lock
    jm.checkpoint.save(tmp_path, 1000, jnp.zeros(2))
    assert ".in-use" not in os.listdir(tmp_path)


def test_without_locks_a_second_writer_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmedian.checkpoint.locks.fcntl", None)

    def on_chunk(step, row):
        if step == 4:
            jm.checkpoint.save(tmp_path, 1, jnp.zeros(2))

    with pytest.raises(RuntimeError, match=r"written to by somebody else.* step 1"):
        train(checkpoint=tmp_path, on_chunk=on_chunk)


# --- other numbers of devices ---------------------------------------------------------


@pytest.mark.usefixtures("promoting")
def test_a_loop_resumes_on_another_number_of_devices(tmp_path):
    """Two steps on 4 devices, two on 8, two on 1: those of six on 2, to the bit."""
    devices = jax.devices()
    expected = bits(train_on_mesh(devices[:2], 6))
    seen = []
    for num_devices, num_steps in ((4, 2), (8, 4), (1, 6)):
        result = train_on_mesh(
            devices[:num_devices], num_steps, 2, tmp_path, seen.append
        )
    assert seen == [2, 4, 6]  # each loop took its own steps only
    assert_same_bits(bits(result), expected)


def test_arrays_come_back_sharded_as_asked(tmp_path):
    meshes = [
        jax.make_mesh((n,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
        for n in (4, 2)
    ]
    spec = jax.sharding.PartitionSpec("model")
    spread = [jax.sharding.NamedSharding(mesh, spec) for mesh in meshes]
    values = np.arange(16, dtype=np.float32)
    jm.checkpoint.save(tmp_path, 1, jax.device_put(values, spread[0]))
    _, read = jm.checkpoint.restore(tmp_path, jax.device_put(0 * values, spread[1]))
    assert read.sharding == spread[1]
    np.testing.assert_array_equal(read, values)
