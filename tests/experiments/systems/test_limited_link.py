"""The limited link: what it lets through, and what happens where it is not allowed."""

import dataclasses
import subprocess

import pytest

pytest.importorskip("tyro")

from experiments.systems import processes
from experiments.systems.processes import network


@pytest.fixture
def hosts():
    try:
        with network.limited_hosts(2, megabits=8) as hosts:
            yield hosts
    except network.NotAllowed as refusal:
        pytest.skip(f"no network namespaces here: {refusal}")


def test_hosts_see_each_other_through_a_slow_cable(hosts):
    """40,000 bytes beyond the burst of 64 KiB take 40 ms at 8 Mbit/s."""
    receive = (
        "import socket, sys, time; server = socket.create_server(('', 5000));"
        "print('ready', flush=True); peer, _ = server.accept(); size = 0\n"
        "start = time.perf_counter()\n"
        "while chunk := peer.recv(65536): size += len(chunk)\n"
        "print(size, time.perf_counter() - start, socket.gethostname())"
    )
    send = (
        "import socket; peer = socket.create_connection(('10.77.0.1', 5000));"
        "peer.sendall(bytes(500_000)); peer.close()"
    )
    python = ("python3", "-c")
    server = subprocess.Popen(
        [*hosts[0].command, *python, receive], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout.readline() == "ready\n"
        subprocess.run([*hosts[1].command, *python, send], check=True, timeout=60)
        size, seconds, name = server.communicate(timeout=60)[0].split()
    finally:
        server.kill()
    assert (int(size), name) == (500_000, hosts[0].address)
    fastest = (500_000 - 2 * 65_536) * 8 / 8e6  # two queues may let a burst through
    assert fastest < float(seconds) < 30


def test_a_refusal_is_printed_and_judges_nothing(monkeypatch, capsys):
    monkeypatch.setattr(network.shutil, "which", lambda tool: None)
    config = processes.PRESETS["tiny"]
    link = processes._on_link(config)
    assert "`ip` is not installed" in capsys.readouterr().out
    claim = processes._link_claim(config, link)
    assert claim.holds is None
    assert "`ip` is not installed" in claim.reason


def test_workers_that_the_processes_cannot_share_are_refused():
    tiny = processes.PRESETS["tiny"]
    with pytest.raises(ValueError, match="--num-workers must be a multiple"):
        processes.run(dataclasses.replace(tiny, num_workers=6))
    with pytest.raises(ValueError, match="--devices takes one number"):
        processes.run(dataclasses.replace(tiny, devices=(1, 2)))
