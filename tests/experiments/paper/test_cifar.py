"""The CIFAR pipeline never reports accuracy for data that were not there."""

import dataclasses
import json

import pytest

pytest.importorskip("flax")
pytest.importorskip("pooch")

from experiments.__main__ import main
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
    schedule = cifar.step_schedule(cifar.Config())
    for step, divisor in [(0, 1), (999, 1), (1001, 2), (3001, 10), (5001, 20)]:
        assert float(schedule(step)) == pytest.approx(1e-3 / divisor, rel=1e-6)


def test_bad_options_are_refused():
    for change in ({"data": "imagenet"}, {"curves": ("none",)}):
        config = dataclasses.replace(cifar.PRESETS["tiny"], **change)
        with pytest.raises(ValueError, match=next(iter(change))):
            cifar.run(config)


def test_images_of_another_shape_are_refused():
    config = dataclasses.replace(cifar.PRESETS["tiny"], data="digits8x8")
    with pytest.raises(ValueError, match=r"32 x 32 .* of shape \(64,\)"):
        cifar.run(config)
