"""Other people's packages, to compare with where they are installed."""

import importlib
import importlib.util
import sys
import types
from typing import Any

import jax


def installed_torch() -> Any:
    """Returns torch if it is installed and works on the device at hand, the CPU."""
    if jax.default_backend() != "cpu":
        return None
    try:
        import torch
    except ImportError:
        return None
    return torch


def installed_byzfl() -> Any | None:
    """Returns ByzFL's aggregators and attacks in one namespace, None if not installed.

    Its front page imports torchvision for its models; what is compared does not, and is
    imported beside it.
    """
    found = importlib.util.find_spec("byzfl")
    if found is None or installed_torch() is None:
        return None
    front_page = sys.modules.get("byzfl")
    package = types.ModuleType("byzfl")
    package.__path__ = list(found.submodule_search_locations or [])
    sys.modules["byzfl"] = package
    try:
        names: dict[str, Any] = {}
        for module in (
            "aggregators.aggregators",
            "aggregators.preaggregators",
            "attacks.attacks",
        ):
            names |= vars(importlib.import_module(f"byzfl.{module}"))
        return types.SimpleNamespace(**names)
    finally:
        sys.modules.pop("byzfl")
        if front_page is not None:
            sys.modules["byzfl"] = front_page


def installed_krum() -> Any | None:
    """Returns krum's aggregators by name, None if it is not installed."""
    if importlib.util.find_spec("krum") is None or installed_torch() is None:
        return None
    folder = "krum.primitives.aggregators"
    return types.SimpleNamespace(
        Krum=importlib.import_module(f"{folder}.krum").Krum,
        TrimmedMean=importlib.import_module(f"{folder}.trimmed_mean").TrimmedMean,
        GeometricMedian=importlib.import_module(
            f"{folder}.geometric_median"
        ).GeometricMedian,
    )
