"""The shape of the package, read off its syntax trees: imports go strictly down."""

import ast
import collections
import pathlib
import re
import subprocess
import sys

import pytest

import jaxmedian

ROOT = pathlib.Path(jaxmedian.__file__).parent
COLLECTIVES = {
    *("psum", "pmean", "pmax", "pmin", "psum_scatter", "ppermute", "pshuffle"),
    *("all_gather", "all_gather_invariant", "all_to_all", "axis_index", "axis_size"),
    *("pvary", "pcast", "pbroadcast"),
}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
}


def imports_of(name):
    """Absolute names of all modules that a module imports, wherever it does."""
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield deeper if deeper in SOURCES else node.module


def own_imports(name):
    return {other for other in imports_of(name) if other in SOURCES} - {name}


def package_of(name):
    """`jaxmedian.splits.classes` belongs to the box `jaxmedian.splits`."""
    return ".".join(name.split(".")[:2])


def test_the_sources_are_found():
    assert {"jaxmedian", "jaxmedian.transforms.vote", "jaxmedian.noise"} <= set(SOURCES)
    assert "jaxmedian.noise.keys" in own_imports("jaxmedian.transforms.vote")


def test_imports_go_strictly_down():
    """No cycle: modules can be stacked so that each imports from below only."""
    waiting = {name: own_imports(name) for name in SOURCES}
    while waiting:
        ready = {name for name, needed in waiting.items() if not needed & set(waiting)}
        assert ready, f"a cycle among {sorted(waiting)}"
        waiting = {
            name: needed for name, needed in waiting.items() if name not in ready
        }


# A module may import from lower floors, and within its own floor only downwards (the
# test above). A new box joins a floor here.
FLOORS = [
    {"noise", "workers", "splits"},
    {"kernels", "theory", "checkpoint"},
    {"transforms", "diagnostics"},
    {"attacks", "training", "optimizers"},
    {"sharding"},
]


def test_no_floor_imports_from_a_higher_one():
    floor = {f"jaxmedian.{name}": i for i, names in enumerate(FLOORS) for name in names}
    assert {package_of(name) for name in SOURCES} - {"jaxmedian"} == set(floor)
    for name in SOURCES:
        for other in own_imports(name) - {"jaxmedian"}:
            if name != "jaxmedian":
                here, there = floor[package_of(name)], floor[package_of(other)]
                assert there <= here, f"{name} imports {other} from above"


def test_a_reader_sees_few_boxes_of_few_files():
    boxes = {path.name for path in ROOT.iterdir()} - {"__pycache__", "py.typed"}
    assert len(boxes - {"__init__.py"}) <= 12, sorted(boxes)
    for box in ROOT.iterdir():
        if box.is_dir():
            files = {path.name for path in box.glob("*.py")} - {"__init__.py"}
            assert len(files) <= 16, (box.name, sorted(files))


def test_no_two_modules_share_a_name():
    """No two, nor one and another's plural: who remembers a name finds one file."""
    seen = {}
    for name in SOURCES:
        last = name.rsplit(".", 1)[-1].removesuffix("s")
        assert last not in seen, f"{name} and {seen[last]}"
        seen[last] = name


def test_optimizers_are_imported_by_the_front_page_only():
    users = {name for name in SOURCES if "jaxmedian.optimizers" in own_imports(name)}
    assert users <= {"jaxmedian"}


def test_training_loops_import_no_transformation():
    """They take any optax chain."""
    for name in SOURCES:
        if package_of(name) == "jaxmedian.training":
            others = {package_of(other) for other in own_imports(name)}
            assert not others & {"jaxmedian.transforms", "jaxmedian.optimizers"}, name


def test_theory_imports_only_the_laws():
    theory = [name for name in SOURCES if package_of(name) == "jaxmedian.theory"]
    for name in theory:
        tops = {other.split(".")[0] for other in imports_of(name)}
        assert not tops & {"optax", "flax", "chex"}, name
        outside = {o for o in own_imports(name) if package_of(o) != "jaxmedian.theory"}
        assert outside <= {"jaxmedian.noise", "jaxmedian.noise.laws"}, name


def test_kernels_know_nothing_but_noise():
    """Neither trees, nor optax, nor other devices: rows in, a row out."""
    for name in SOURCES:
        if package_of(name) == "jaxmedian.kernels":
            assert not {o.split(".")[0] for o in imports_of(name)} & {"optax"}, name
            others = {package_of(other) for other in own_imports(name)}
            assert others <= {"jaxmedian.kernels", "jaxmedian.noise"}, name


def test_splits_need_numpy_alone():
    for name in SOURCES:
        if package_of(name) == "jaxmedian.splits":
            tops = {other.split(".")[0] for other in imports_of(name)}
            assert not tops & {"jax", "optax"}, name


def test_only_collectives_talk_to_other_devices():
    """No other file names a collective, be it as an attribute or imported."""
    for name, tree in SOURCES.items():
        if name == "jaxmedian.workers.collectives":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in COLLECTIVES:
                pytest.fail(f"{name}, line {node.lineno}: {node.attr}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "jax."
            ):
                named = {alias.name for alias in node.names} & COLLECTIVES
                assert not named, f"{name}, line {node.lineno}: {named}"


def test_collectives_do_talk_to_other_devices():
    attributes = {
        node.attr
        for node in ast.walk(SOURCES["jaxmedian.workers.collectives"])
        if isinstance(node, ast.Attribute)
    }
    assert {"psum", "axis_index", "all_to_all"} <= attributes


def test_nothing_imports_experiments_or_test_tools():
    for name in SOURCES:
        tops = {other.split(".")[0] for other in imports_of(name)}
        assert not tops & {"experiments", "flax", "chex", "pytest"}, name
        on_import = {
            alias.name.split(".")[0]
            for node in SOURCES[name].body
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {
            (node.module or "").split(".")[0]
            for node in SOURCES[name].body
            if isinstance(node, ast.ImportFrom)
        }
        only_where_asked_for = {"matplotlib", "tqdm", "orbax", "etils", "torch"}
        only_where_asked_for |= {"torchft"}
        assert not on_import & only_where_asked_for, name


def test_every_file_opens_with_what_it_is():
    for name, tree in SOURCES.items():
        assert ast.get_docstring(tree), name


def test_every_public_name_exists_and_is_documented():
    for name in jaxmedian.__all__:
        value = getattr(jaxmedian, name)
        assert value.__doc__, name
        if callable(value) and not isinstance(value, type):
            assert value.__annotations__.get("return") is not None, name


def test_optimizers_are_chains_and_nothing_else():
    """No state, no init, no update is written in optimizers.py."""
    defined = {
        node.name
        for node in ast.walk(SOURCES["jaxmedian.optimizers"])
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    assert not {name for name in defined if "init" in name or "update_fn" in name}
    assert not any(
        isinstance(node, ast.ClassDef)
        for node in ast.walk(SOURCES["jaxmedian.optimizers"])
    )


def test_nothing_draws_from_a_global_generator():
    """No `np.random.<function>` but seeded generators, no `random` module."""
    for name, tree in SOURCES.items():
        assert "random" not in set(imports_of(name)), name
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr == "random"
                and isinstance(node.value.value, ast.Name)
                and node.value.value.id == "np"
            ):
                assert node.attr in ("default_rng", "Generator"), (name, node.lineno)


def test_scipy_and_torch_are_imported_by_those_who_need_them_only():
    """SciPy takes a second; torch takes several, and no core is to need it."""
    script = "import sys, jaxmedian as jm; before = 'scipy.special' in sys.modules; "
    script += "jm.theory; print(before, 'scipy.special' in sys.modules); "
    script += "jm.elastic; print('torch' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == ["False", "True", "False"]


def test_few_annotations_say_any():
    """One in twenty at most; trees of arrays are called `PyTree`."""
    said = []
    for name, source in SOURCES.items():
        for node in ast.walk(source):
            if isinstance(node, ast.FunctionDef):
                arguments = [a for a in ast.walk(node.args) if isinstance(a, ast.arg)]
                found = [argument.annotation for argument in arguments] + [node.returns]
                said += [(name, ast.unparse(a)) for a in found if a is not None]
    with_any = [where for where, text in said if re.search(r"\bAny\b", text)]
    assert len(with_any) <= len(said) / 20, collections.Counter(with_any).most_common(9)
