"""The command line lists, helps, runs and complains as people expect."""

import csv
import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tyro")

from experiments.__main__ import EXPERIMENTS, main

ROOT = Path(__file__).parents[4]


def test_without_arguments_it_lists_every_experiment(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_shows_every_field_of_the_config(name, capsys):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    box = EXPERIMENTS[name]
    config = importlib.import_module(f"experiments.{box}.{name}").Config
    for field in dataclasses.fields(config):
        assert f"--{field.name.replace('_', '-')}" in printed or field.name in printed
    assert ("--seeds" in printed) == hasattr(config, "num_seeds")


def test_help_may_come_first(capsys):
    assert main(["-h", "toy"]) == 0
    assert "--settle-steps" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "reproduce" in capsys.readouterr().out


MISUSE = {
    "reprodce": "Did you mean reproduce?",
    "--list": "`python -m experiments` lists them",
    "toy --preset huge": "'--preset'. Expected one of ('default', 'quick')",
    "toy --preset quik": "'--preset'. Expected one of ('default', 'quick')",
    "toy --preset": "Missing value for argument '--preset'",
    "toy --sede 3": "Unrecognized options: --sede, 3",
    "toy --sedes 3": "--seeds, --num-seeds INT",
    "toy --reusme": "--resume",
    "toy --prest quick": "--preset",
    "reproduce --num-workers 5": "--mnist.num-workers",
    "toy quick": "Unrecognized options: quick",
    "toy --num-steps many": "--num-steps: invalid literal for int()",
    "toy --num-steps": "Missing value for argument '--num-steps'",
    "toy --num-steps 0": "--num-steps: it takes 1 or more; got 0",
    "toy --seeds 0": "--seeds/--num-seeds: it takes 1 or more; got 0",
    "toy --seed -1": "--seed: it takes 0 to 4294967295; got -1",
    "gap --seed 4294967296": "--seed: it takes 0 to 4294967295; got 4294967296",
    "elastic --kills -1": "--kills: it takes 0 or more; got -1",
    "mnist --hidden -3": "--hidden: it takes 1 or more; got -3",
    "communication --devices 0": "--devices",
    "toy --scale -1": "`scale` must be finite and >= 0",
    "sweep --scales": "`scales` must be finite and >= 0, and one at least; got ()",
    "sweep --scales 0.1 -1": "`scales` must be finite and >= 0",
    "toy --law cauchy": "`law` must be one of gaussian, laplace, logistic, uniform",
    "neighbours --gradient-rates": "--gradient-rates: it takes finite numbers >= 0",
    "byzantine --scales": "--scales: it takes finite numbers >= 0, one at least; got n",
    "shakespeare --vote-rates 0.1 -1": "one at least; got 0.1 -1",
    "rates --simulated-steps 51": "--simulated-steps must be even",
    "rates --centres 1 2": "--centres takes an odd number of them; got (1.0, 2.0)",
    "robustness_price --scales 1 8": "--scales must begin with 0 and hold 1; got (1.0,",
    "robustness_price --alpha 0": "--alpha must be above 0; got 0.0",
    "byzantine --alphas 1 0": "one split, each above 0; got (1.0, 0.0)",
    "heterogeneity --alphas -1": "`alphas` must be above 0; got (-1.0,)",
    "coupling_in_training --rules": "--rules takes vote and median, one at least",
    "mnist --median-scales 0 -1": "`median_scales` must be finite and >= 0; got (0.0",
    "toy --resume": "toy saves no checkpoints",
    "toy --out FILE": "--out takes a folder that can be written; got FILE",
    "toy --out FILE/below": "--out takes a folder that can be written; got FILE/below",
}


@pytest.mark.parametrize("command", MISUSE)
def test_misuse_is_refused_and_named(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    assert main(command.split()) == 2
    complaint = capsys.readouterr().err
    assert MISUSE[command] in " ".join(complaint.replace("│", "").split())
    assert "Traceback" not in complaint
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "FILE"]


MISUSE_OF_DATA = {
    "mnist --preset tiny --data digits8x8 --curves vote --validation 2000": "--data "
    "takes 2000 training images or more here",
    "mnist --preset tiny --data digits8x8 --curves VOTE --batch-size 200 "
    "--batch-scales 0": "--batch-size takes at most the 122 samples of the smallest",
    "byzantine --preset tiny --attacks VOTES --rules mean": "--attacks must name one "
    "that can be tried with mean; ['pivotal votes'] cannot",
    "shakespeare --texts FILE --split speakers": "give --texts or --split speakers",
}


@pytest.mark.parametrize("command", MISUSE_OF_DATA)
def test_what_the_data_do_not_allow_is_refused_before_training(
    command, tmp_path, monkeypatch, capsys
):
    from experiments.common.training import trainer

    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer, "_chunk_by_chunk", pytest.fail)
    full = {"VOTES": "pivotal votes", "VOTE": "vote, batch 200"}
    assert main([full.get(word, word) for word in command.split()]) == 2
    assert MISUSE_OF_DATA[command] in capsys.readouterr().err


def test_a_fault_of_ours_shows_where_it_came_from(monkeypatch, tmp_path):
    from experiments.common.harness.misuse import Misuse
    from experiments.paper import toy

    for error in (ValueError, TypeError):

        def run(config, error=error):
            raise error("ours")

        monkeypatch.setattr(toy, "run", run)
        with pytest.raises(error, match="ours"):
            main(["toy", "--out", str(tmp_path)])

    def misused(config):
        raise Misuse("yours")

    monkeypatch.setattr(toy, "run", misused)
    assert main(["toy", "--out", str(tmp_path)]) == 2


def test_the_folder_is_tried_before_the_run(tmp_path, monkeypatch, capsys):
    from experiments.paper import toy

    monkeypatch.setattr(toy, "run", pytest.fail)
    (tmp_path / "out").touch()
    assert main(["toy", "--out", str(tmp_path / "out")]) == 2
    assert "--out takes a folder" in capsys.readouterr().err


def test_a_misspelt_name_is_answered_before_anything_slow_is_imported():
    script = (
        "import sys; from experiments.__main__ import main; code = main(['mnits']);"
        "slow = {'jax', 'numpy', 'tyro', 'matplotlib', 'jaxmedian'} & set(sys.modules);"
        "sys.exit(f'{code} {sorted(slow)}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stderr.splitlines() == [
        "experiments: there is no experiment 'mnits'. Did you mean mnist?",
        "2 []",
    ]


@pytest.mark.parametrize("option", ["--seeds 3", "--seeds=3", "--num-seeds 3"])
def test_seeds_are_the_number_of_runs(option):
    from experiments.common.harness.options import parse
    from experiments.paper import toy

    config = parse(toy, "toy", ["--scale", "2", *option.split()]).config
    assert config == toy.Config(scale=2.0, num_seeds=3)


def test_options_change_the_preset_that_is_named():
    from experiments.common.harness.options import parse
    from experiments.paper import reproduce

    options = ["--toy.num-seeds", "3", "--preset", "tiny", "--out", "here"]
    parsed = parse(reproduce, "reproduce", options)
    tiny = reproduce.PRESETS["tiny"]
    assert parsed.config.toy == dataclasses.replace(tiny.toy, num_seeds=3)
    assert parsed.config.mnist == tiny.mnist
    assert parsed.out == Path("here")


def test_stopping_by_hand_ends_without_a_traceback(monkeypatch, tmp_path, capsys):
    from experiments.paper import toy

    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "run", interrupted)
    assert main(["toy", "--out", str(tmp_path / "new")]) == 130
    assert capsys.readouterr().err == "experiments: stopped.\n"
    assert not (tmp_path / "new").exists()


def test_stopping_between_parts_leaves_partial_results(monkeypatch, tmp_path, capsys):
    """Ctrl-C in the second of three families of curves: the first is kept."""
    from experiments.paper import mnist

    build_trainer, built = mnist.build_trainer, []

    def interrupted(*arguments, **options):
        if built:
            raise KeyboardInterrupt
        built.append(1)
        return build_trainer(*arguments, **options)

    monkeypatch.setattr(mnist, "build_trainer", interrupted)
    command = ["mnist", "--preset", "tiny", "--out", str(tmp_path)]
    assert main(command) == 130
    assert capsys.readouterr().err.endswith("experiments: stopped.\n")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["partial"] is True
    assert list(summary["last"]) == ["mean"]
    assert {claim["holds"] for claim in summary["claims"]} == {None}


def test_a_part_is_printed_as_it_is_written(monkeypatch, tmp_path, capsys):
    from matplotlib.figure import Figure

    from experiments.common.harness.results import Claim, Result
    from experiments.paper import toy

    claims = (Claim("noise helps", "1", True), Claim("noise hurts", "2", False))
    for partial, code in ((True, 130), (False, 1)):
        result = Result({}, claims, partial=partial)
        monkeypatch.setattr(toy, "run", lambda config, result=result: result)
        monkeypatch.setattr(toy, "plot", lambda result: Figure())
        assert main(["toy", "--out", str(tmp_path)]) == code
        printed = capsys.readouterr().out
        assert ("holds" in printed) == ("FAILS" in printed) == (not partial)


def test_reproduce_at_toy_size_writes_its_four_files(tmp_path, capsys):
    code = main(["reproduce", "--preset", "tiny", "--out", str(tmp_path)])
    assert code in (0, 1)  # 200 steps are too few for the toy problem's claims
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert code == int(any(claim["holds"] is False for claim in summary["claims"]))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["mnist"]["num_steps"] == 4
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["curve"] for row in rows} >= {"toy: signSGD", "mnist: vote"}
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path) in capsys.readouterr().out


@pytest.fixture(scope="module")
def tiny_mnist(tmp_path_factory):
    out = tmp_path_factory.mktemp("mnist")
    assert main(["mnist", "--preset", "tiny", "--out", str(out)]) == 0
    return out


def test_a_killed_experiment_resumes_to_the_same_results(tiny_mnist, tmp_path, capsys):
    """As if it had been killed before one of four curves, which is then made up for."""
    shutil.copytree(tiny_mnist / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "mean")
    command = ["mnist", "--preset", "tiny", "--out", str(tmp_path), "--resume"]
    assert main([*command, "--curves", "mean"]) == 0
    assert list(json.loads((tmp_path / "summary.json").read_text())["last"]) == ["mean"]
    assert "4 of 4 steps" not in capsys.readouterr().out
    assert main([*command, "--data-dir", str(tmp_path)]) == 0  # changes no run
    assert capsys.readouterr().out.count("4 of 4 steps") == 4
    metrics = (tmp_path / "metrics.csv").read_text()
    assert metrics == (tiny_mnist / "metrics.csv").read_text()
    seconds = json.loads((tmp_path / "summary.json").read_text())["seconds"]
    before = json.loads((tiny_mnist / "summary.json").read_text())["seconds"]
    assert seconds > before  # those of the calls before it count
    assert main([*command, "--vote-rate", "0.01"]) == 2
    assert "made with --vote-rate 0.001 (now 0.01)" in capsys.readouterr().err


def test_a_fresh_start_moves_old_checkpoints_aside(tmp_path, capsys):
    """And none is deleted before the start after it has saved some of its own."""
    from experiments.common.harness.resuming import open_checkpoints
    from experiments.paper.mnist import Config

    def start(resume=False, **changes):
        return open_checkpoints(tmp_path, Config(**changes), resume)

    old = tmp_path / "checkpoints.old"
    folder = start()
    save_in(folder, "first")
    assert start(resume=True) == folder
    assert (folder / "mean" / "1").read_text() == "first"
    for _ in range(2):  # the first of these saves nothing
        start(num_seeds=1)
        assert [file.name for file in folder.iterdir()] == ["settings.json"]
        assert (old / "mean" / "1").read_text() == "first"
    assert capsys.readouterr().out.count("rename it back to checkpoints") == 1
    save_in(folder, "second")
    start()
    assert (old / "mean" / "1").read_text() == "second"
    assert start(resume=True, num_seeds=1) == folder  # the third saved nothing
    assert (folder / "mean" / "1").read_text() == "second"
    assert not old.exists()


def save_in(folder, content):
    (folder / "mean").mkdir()
    (folder / "mean" / "1").write_text(content)


def test_a_start_that_saves_nothing_gives_old_checkpoints_back(tmp_path, capsys):
    from experiments.common.harness.resuming import open_checkpoints
    from experiments.paper.mnist import PRESETS

    save_in(open_checkpoints(tmp_path, PRESETS["tiny"], resume=False), "dear")
    command = ["mnist", "--preset", "tiny", "--out", str(tmp_path), "--curves", "maen"]
    assert main(command) == 2
    assert "--curves takes some of" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "mean" / "1").read_text() == "dear"
    assert not (tmp_path / "checkpoints.old").exists()


def test_what_is_no_checkpoint_of_experiments_is_left_alone(tmp_path):
    from experiments.common.harness.resuming import open_checkpoints
    from experiments.paper.mnist import Config

    theirs = tmp_path / "checkpoints" / "theirs"
    theirs.parent.mkdir()
    theirs.write_text("kept")
    with pytest.raises(ValueError, match="holds no checkpoints of experiments"):
        open_checkpoints(tmp_path, Config(), resume=False)
    assert theirs.exists()


def test_attacks_belong_to_a_run_and_curves_do_not(tmp_path):
    """The state of a run has a part for each attack that it may meet."""
    from experiments.common.harness.resuming import open_checkpoints
    from experiments.hostile.byzantine import Config

    config = dataclasses.replace(Config(), attacks=("label flip",))
    folder = open_checkpoints(tmp_path, config, resume=False)
    fewer_rules = dataclasses.replace(config, rules=("vote",))
    assert open_checkpoints(tmp_path, fewer_rules, resume=True) == folder
    more = dataclasses.replace(config, attacks=("label flip", "sign flip"))
    with pytest.raises(ValueError, match="made with --attacks"):
        open_checkpoints(tmp_path, more, resume=True)


def test_tiny_mnist_wrote_its_files(tiny_mnist):
    assert (tiny_mnist / "figure.png").exists()
    assert json.loads((tiny_mnist / "summary.json").read_text())["device"]


RUN_ELSEWHERE = (
    *("reproduce", "toy", "mnist", "choose_noise", "exactness", "cifar"),
    *("bounds", "rates"),
)


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n not in RUN_ELSEWHERE])
def test_every_experiment_runs_at_toy_size(name, tmp_path):
    if name == "elastic":
        pytest.importorskip("torchft")
    assert main([name, "--preset", "tiny", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "figure.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["device"]
