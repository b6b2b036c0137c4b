"""Every Python block of the site's pages runs, in order, and does what the page says.

Each page has one namespace. Nothing is sent anywhere: where a page logs to a service, a
stand-in takes its place.
"""

import os
import re
import socket
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import xla_flags

# As the pages' readers run them
pytestmark = pytest.mark.usefixtures("promoting")

PAGES = Path(__file__).parents[1] / "notebooks" / "pages"
OPTIONAL = (
    "equinox",
    "flax",
    "grain",
    "haiku",
    "orbax.checkpoint",
    "safetensors",
    "tensorboardX",
)


def run_blocks(page):
    """Runs a page; every `result` of `jm.run` that has several rows must descend."""
    text = (PAGES / page).read_text(encoding="utf-8")
    for package in OPTIONAL:
        if re.search(rf"(import|from) {package.split('.')[0]}\b", text):
            pytest.importorskip(package)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    namespace, last = {}, None
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
        result = namespace.get("result")
        if result is not last and len(result.metrics["step"]) > 1:
            losses = result.metrics["loss"]
            assert losses[-3:].mean() < losses[0], block
        last = result
    return namespace


def test_the_start_page_trains_as_it_says(capsys):
    page = "index.md"
    namespace = run_blocks(page)
    (said,) = re.findall(
        r"```text\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL
    )
    for line in said.splitlines():
        name, accuracy = re.fullmatch(r"(.*?) +(\S+)", line).groups()
        found = namespace["results"][name].metrics["accuracy"][-1]
        assert abs(found - float(accuracy)) < 0.04, name  # gradients differ by XLA


def test_the_recipes_for_models():
    namespace = run_blocks("recipes/models.md")
    accuracy, trained = namespace["accuracy"], namespace["trained"]
    stats = namespace["nnx"].state(trained, namespace["nnx"].BatchStat)
    params = namespace["nnx"].state(trained, namespace["nnx"].Param)
    assert stats["norm"]["mean"][...].shape == (16,)
    assert accuracy(params, stats)["accuracy"] > 0.8  # statistics averaged
    assert namespace["pooled"]["accuracy"] > 0.8
    assert namespace["each"]["accuracy"].shape == (4,)
    assert namespace["each"]["accuracy"].min() > 0.8
    guesses = jnp.argmax(namespace["scores"], axis=-1)  # of Linen's model
    assert jnp.mean(guesses == namespace["labels"]) > 0.8


def test_the_recipes_for_training():
    namespace = run_blocks("recipes/training.md")
    params, loss = namespace["params"], namespace["loss"]
    key = jax.random.key(1)
    # Frozen stays, to the bit; without the mask noise moves what has no gradient.
    jm, optax = namespace["jm"], namespace["optax"]

    def frozen_loss(params, batch):
        return loss({**params, "in": jax.lax.stop_gradient(params["in"])}, batch)

    bare = jm.noisy_sign_sgd(1e-2, namespace["noise"], key=0)
    masked = optax.chain(bare, optax.masked(optax.set_to_zero(), namespace["frozen"]))
    for optimizer, stays in ((bare, False), (masked, True)):
        step = jm.make_step(frozen_loss, optimizer)
        batch = namespace["next_batch"](key, 0)
        moved, _, _ = step(params, optimizer.init(params), batch)
        assert bool(jnp.array_equal(moved["in"], params["in"])) == stays
        assert not jnp.array_equal(moved["out"], params["out"])
    # Accumulated over micro-batches, the gradient is that of the whole batch.
    whole = jm.worker_grads(loss)(params, namespace["next_batch"](key, 0))
    parts = jm.worker_grads(namespace["accumulated"](loss))(
        params, namespace["micro_batches"](key, 0)
    )
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # Adapters alone have moved.
    before, after = namespace["adapted"], namespace["adapted_params"]
    for a, b in zip(
        *map(jax.tree.leaves, (before["base"], after["base"])), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert jnp.any(after["adapter_up"] != 0)
    # Lion behind noisy signs learns.
    losses = namespace["learned"].metrics["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_the_recipes_for_devices_logs_and_files(monkeypatch):
    logged = {}
    wandb = types.SimpleNamespace(
        init=lambda project, mode: None,
        log=lambda row, step: logged.update({step: row}),
        finish=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # nothing leaves this machine
    namespace = run_blocks("recipes/systems.md")
    assert list(logged) == [20, 40, 60, 80, 100]
    losses = [row["loss"] for row in logged.values()]
    np.testing.assert_array_equal(losses, namespace["result"].metrics["loss"])
    assert any("tfevents" in path.name for path in Path(namespace["folder"]).iterdir())
    assert namespace["moved"].shape == (4,)
    assert namespace["best"] < 1.5  # of 2 at the start, and 1 at the mean
    state = namespace["result"].opt_state
    words = namespace["with_words"]
    for name in ("opt_state", "from_flax", "from_safetensors"):
        read = namespace[name]
        assert jax.tree.structure(read) == jax.tree.structure(state), name
        for a, b in zip(*map(jax.tree.leaves, (read, state)), strict=True):
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(words(a), words(b))


def test_the_script_for_a_pod_ends_alike_wherever_it_runs(tmp_path):
    """On one device, on eight, and on two processes with Slurm's variables."""
    (block,) = re.findall(
        r"```python\n(.*?)```",
        (PAGES / "pod.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    script = tmp_path / "train.py"
    script.write_text(block)
    job = next(job for job in range(os.getpid(), os.getpid() + 999) if is_free(job))
    slurm = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": 2}
    starts = [
        ([], {"XLA_FLAGS": xla_flags(1)}),
        ([], {"XLA_FLAGS": xla_flags(8)}),
        *(
            (
                ["cluster"],
                {
                    "XLA_FLAGS": xla_flags(1),
                    "SLURM_PROCID": i,
                    "SLURM_LOCALID": i,
                    **slurm,
                },
            )
            for i in range(2)
        ),
    ]
    running = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=os.environ
            | {name: str(value) for name, value in variables.items()}
            | {"PYTHONPATH": str(PAGES.parents[1]), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for arguments, variables in starts
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    ends = [re.findall(r"(\d) devices, loss .*\nparameters (\w+)", out) for out in said]
    numbers, digests = zip(*(end for (end,) in ends[:3]), strict=True)
    assert numbers == ("1", "8", "2")
    assert len(set(digests)) == 1
    assert ends[3] == []  # only the first process speaks


def is_free(slurm_job):
    """Whether the port that JAX takes for a job of Slurm is free."""
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", slurm_job % 2**12 + 61440)) != 0


def test_the_example_of_the_concepts_is_an_optimizer():
    optimizer = run_blocks("concepts.md")["optimizer"]
    grads, params = jnp.ones((3, 2)), jnp.zeros(2)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_array_equal(updates, np.float32([-0.01, -0.01]))


def test_the_page_on_noise_survives_its_own_example():
    page = "noise.md"
    namespace = run_blocks(page)
    text = (PAGES / page).read_text(encoding="utf-8")
    (said,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    ends = namespace["ends"]
    assert len(said.splitlines()) == len(ends)
    for line in said.splitlines():
        name, *written = re.fullmatch(r"(.*?)" + r" +(\S+)" * 4, line).groups()
        np.testing.assert_allclose(ends[name], np.float64(written), atol=0.1)
    # Exact: the noise-free rules stop at the median, unbiased medians at the mean. What
    # is left there, before the rate r decays from 2e-3, is sqrt(r V / 2), with V the
    # variance of the median: 5.91, times the curvatures 1 and 20.
    np.testing.assert_allclose(ends["none"], 2, atol=0.02)
    errors = np.abs(ends["unbiased()"][:2] - 13 / 3)
    assert (errors < 5 * np.sqrt(2e-3 * 5.91 / 2 * np.array([1, 20]))).all()
    assert namespace["at_start"].scale == 0
    assert len(namespace["said"]) == 1
    assert namespace["best"].scale > 0
    theory, values = namespace["jm"].theory, namespace["share"] * namespace["values"]
    scale = theory.unbiased_scale(values, mean_only=True)
    noise = namespace["jm"].noise.uniform(scale, "systematic")
    mean, variance = theory.median_moments(values, noise)
    assert abs(namespace["estimate"] - mean) < 5 * np.sqrt(variance / 10_000)
