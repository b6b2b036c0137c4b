"""How XLA compiles the programs of the tests, and of the processes that they start."""

import importlib.metadata
import os
import platform


def xla_flags(num_devices: int) -> str:
    """Returns `XLA_FLAGS` for so many virtual CPU devices.

    Programs compiled in a hurry are so by XLA's older emitters, where there are some:
    they take a third of the time. Now and then they round a product and a sum at once,
    and not where the next device does, so equal bits want a processor that never can.
    """
    flags = [f"--xla_force_host_platform_device_count={num_devices}"]
    jaxlib = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
    in_a_hurry = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0"
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    if in_a_hurry and jaxlib < (0, 11) and is_x86:
        flags += [
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_max_isa=AVX",
            "--xla_cpu_parallel_codegen_split_count=1",
        ]
    return " ".join(flags)
