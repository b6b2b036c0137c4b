"""The CIFAR pipeline never reports accuracy for data that were not there."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("pooch")

from experiments.__main__ import main
from experiments.common.data.data_set import DataSet
from experiments.common.training.models import Classifier
from experiments.common.training.outcomes import Runs
from experiments.common.training.problems import Problem
from experiments.paper import cifar


def test_random_images_get_no_accuracy(tmp_path):
    assert main(["cifar", "--preset", "tiny", "--out", str(tmp_path)]) == 0
    assert "accuracy" not in (tmp_path / "metrics.csv").read_text()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert all("accuracy" not in key for row in summary["last"].values() for key in row)
    assert "no accuracy: synthetic" in summary["claims"][1]["here"]


def test_without_the_data_the_run_stops_and_says_so(tmp_path, monkeypatch, capsys):
    def unreachable(data, data_dir):
        raise ConnectionError("Cannot fetch cifar-10-binary.tar.gz")

    monkeypatch.setattr(cifar, "load_data", unreachable)
    assert main(["cifar", "--out", str(tmp_path / "new")]) == 2
    printed = capsys.readouterr().err
    assert "Cannot fetch" in printed
    assert "--data synthetic" in printed
    assert not (tmp_path / "new").exists()


def test_the_step_is_divided_by_2_10_and_20():
    schedule = cifar.step_schedule(cifar.Config(), 1e-3)
    for step, divisor in [(0, 1), (999, 1), (1001, 2), (3001, 10), (5001, 20)]:
        assert float(schedule(step)) == pytest.approx(1e-3 / divisor, rel=1e-6)


def test_bad_options_are_refused():
    for change in ({"data": "imagenet"}, {"curves": ("none",)}):
        config = dataclasses.replace(cifar.PRESETS["tiny"], **change)
        with pytest.raises(ValueError, match=next(iter(change))):
            cifar.run(config)


def linear():
    """A classifier that compiles at once."""

    def logits(params, batch):
        return batch["images"].astype(jnp.float32).mean((1, 2)) / 255 @ params

    def loss(params, batch):
        return -jnp.mean(jax.nn.log_softmax(logits(params, batch))[:, 0])

    def accuracy(params, batch):
        right = logits(params, batch).argmax(1) == batch["labels"]
        return jnp.average(right.astype(jnp.float32), weights=batch["weights"])

    return Classifier(jnp.zeros((3, 3)), loss, accuracy)


def test_images_of_a_folder_are_named_beside_their_accuracy(tmp_path, monkeypatch):
    """Workers one by one, as on a CPU; 7 test images, which no batch divides."""
    monkeypatch.setattr(cifar, "_EVALUATED_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    pets = DataSet(pixels[:5], labels[:5], pixels[5:], labels[5:], "3 pets")
    monkeypatch.setattr(cifar, "load_data", lambda data, data_dir: pets)
    monkeypatch.setattr(cifar, "resnet20", lambda seed, *size: linear())
    config = dataclasses.replace(
        cifar.PRESETS["tiny"],
        data="pets",
        curves=("by label, noisy per coordinate",),
        num_workers=2,
        worker_chunk=1,
        num_seeds=1,
    )
    result = cifar.run(config)
    (curve,) = result.curves.values()
    sevenths = curve["test_accuracy"] * 7
    np.testing.assert_allclose(sevenths, sevenths.round(), atol=1e-5)
    assert result.data == "3 pets"
    assert "(3 pets, 2 steps, 1 seed)" in result.claims[1].here
    assert result.claims[1].holds is None


def test_the_accuracy_of_parts_is_that_of_the_whole():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (207, 1), dtype=np.uint8))
    labels = jnp.asarray(rng.integers(0, 2, 207))

    def accuracy(params, batch):
        right = (batch["images"][:, 0] > params) == (batch["labels"] > 0)
        return jnp.average(right.astype(jnp.float32), weights=batch.get("weights"))

    test = {"images": images, "labels": labels}
    model = Classifier(None, None, accuracy)
    problem = Problem(model, None, None, {}, {}, test, "bits")
    expected = np.mean((np.asarray(images)[:, 0] > 100) == (np.asarray(labels) > 0))
    assert float(cifar._accuracy(problem, 100)) == pytest.approx(expected, abs=1e-6)


def test_images_of_another_shape_are_refused():
    config = dataclasses.replace(cifar.PRESETS["tiny"], data="digits8x8")
    with pytest.raises(ValueError, match=r"32 x 32 .* of shape \(64,\)"):
        cifar.run(config)


def test_noise_has_to_end_nearer_to_the_reference_than_no_noise():
    def reached(**last):
        names = {"noisy": "by label, noisy", "plain": "by label, no noise"}
        rows = {names.get(name, "iid, no noise"): x for name, x in last.items()}
        rows = dict.fromkeys(cifar._CURVES, 0.5) | rows
        return {
            name: Runs({}, {"test_accuracy": np.full((1, 5, 1), x)})
            for name, x in rows.items()
        }

    config = cifar.Config()
    for noisy, holds in ((0.72, True), (0.95, False)):
        found = reached(noisy=noisy, plain=0.6, iid=0.75)
        claim = cifar._comparison(config, "CIFAR-10", found)
        assert claim.holds is holds
    del found["iid, no noise"]
    claim = cifar._comparison(config, "CIFAR-10", found)
    assert (claim.statement, claim.holds) == ("Last test accuracy", None)
