"""The command line lists every experiment there is."""

from pathlib import Path

import experiments
from experiments.__main__ import EXPERIMENTS

FOLDER = Path(experiments.__file__).parent


def place(module):
    return module.parent.name, module.name


def test_every_module_with_a_config_is_listed():
    modules = {
        place(path.with_suffix("") if path.stem != "__init__" else path.parent)
        for path in FOLDER.rglob("*.py")
        if "\ndef run(config: Config" in path.read_text()
    }
    assert modules == {(box, name) for name, box in EXPERIMENTS.items()}
