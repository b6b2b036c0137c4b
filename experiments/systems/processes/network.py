"""Processes on machines of their own, as far as the network can tell.

Each process gets a network namespace, joined to the others by a virtual switch, and
every cable between a process and the switch carries a limited number of bits a second
each way (`tc tbf`). Needs Linux, iproute2 and root; the host's own network is left
alone, since the switch has a namespace too.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

_SWITCH = "switch"


class Host(NamedTuple):
    """A network namespace that a process can run in.

    Attributes:
      address: its address on the switch.
      command: what to put before a command, to run it there.
    """

    address: str
    command: tuple[str, ...]


class NotAllowed(Exception):
    """Says why no namespaces can be made here."""


@contextlib.contextmanager
def limited_hosts(number: int, megabits: float) -> Iterator[list[Host]]:
    """Makes hosts whose cables carry so many megabits a second, and removes them again.

    Raises:
      NotAllowed: with the reason, where the system does not let us.
    """
    for tool in ("ip", "tc", "unshare"):
        if shutil.which(tool) is None:
            raise NotAllowed(f"`{tool}` is not installed (iproute2 and util-linux)")
    prefix = f"jaxmedian{os.getpid()}-"
    made: list[str] = []
    try:
        _make_namespace(prefix + _SWITCH, made)
        _in(prefix + _SWITCH, "ip link add bridge type bridge")
        _in(prefix + _SWITCH, "ip link set bridge up")
        hosts = []
        for i in range(number):
            name, address = f"{prefix}{i}", f"10.77.0.{i + 1}"
            _make_namespace(name, made)
            _plug_in(name, prefix + _SWITCH, f"port{i}", address, megabits)
            # Peers announce themselves by host name; an address is one that resolves.
            enter = f"ip netns exec {name} unshare --uts sh -c"
            run = f'hostname {address} && exec "$@"'
            hosts.append(Host(address, (*enter.split(), run, "sh")))
        yield hosts
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _make_namespace(name: str, made: list[str]) -> None:
    _run(f"ip netns add {name}")
    made.append(name)
    _in(name, "ip link set lo up")


def _plug_in(name: str, switch: str, port: str, address: str, megabits: float) -> None:
    """Joins a namespace to the switch by a cable of limited speed."""
    _in(name, f"ip link add eth0 type veth peer name {port} netns {switch}")
    _in(name, f"ip address add {address}/24 dev eth0")
    _in(switch, f"ip link set {port} master bridge")
    for namespace, device in ((name, "eth0"), (switch, port)):
        _in(namespace, f"ip link set {device} up")
        # A burst of one large segment: what is sent is sent at the rate of the link.
        limit = f"rate {megabits}mbit burst 64kb latency 400ms"
        _in(namespace, f"tc qdisc add dev {device} root tbf {limit}")


def _in(namespace: str, command: str) -> None:
    _run(f"ip netns exec {namespace} {command}")


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise NotAllowed(f"`{command}` was refused: {said}")
