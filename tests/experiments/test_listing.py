"""The command line lists every experiment there is."""

from pathlib import Path

import experiments
from experiments.__main__ import EXPERIMENTS

FOLDER = Path(experiments.__file__).parent


def test_every_module_with_a_config_is_listed():
    modules = {
        path.parent.name if path.name == "__init__.py" else path.stem
        for path in [*FOLDER.glob("*.py"), *FOLDER.glob("*/__init__.py")]
        if "\ndef run(config: Config" in path.read_text()
    }
    assert modules == set(EXPERIMENTS)
