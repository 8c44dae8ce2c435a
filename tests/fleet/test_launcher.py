"""Where shards run."""

from __future__ import annotations

import pickle
import socket
import sys
import threading
from pathlib import Path
from subprocess import run as run_process

import pytest
from msgspec.structs import replace

from fleet.launcher import HostUnreachable, RayBackend, fault_of_address
from fleet.placement import partition
from fleet.plan import make_plan
from fleet.scenario import load_scenario
from node.api import HostCall, UpdateCommand, UpdatePolicy
from node.shard import Shard
from tests.fleet.rollouts import NEW

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_local_backend_does_not_load_ray() -> None:
    code = "import sys, fleet.launcher as l; l.LocalBackend(); sys.exit('ray' in sys.modules)"
    assert run_process([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.ray
def test_an_address_on_which_nobody_listens_is_refused_at_once(no_ray: None) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(
            HostUnreachable, match=f"no Ray cluster listens at {address}: .*refused"
        ):
            RayBackend(address)


@pytest.mark.ray
@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_somebody_else_at_the_address_is_not_waited_for(no_ray: None, answer: bytes) -> None:
    """As the dashboard, whose port is easily taken for the cluster's."""

    def once() -> None:
        peer, _ = dashboard.accept()
        with peer:
            peer.recv(64)
            peer.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as dashboard:
        address = f"127.0.0.1:{dashboard.getsockname()[1]}"
        answering = threading.Thread(target=once)
        answering.start()
        with pytest.raises(HostUnreachable, match=f"no Ray cluster at {address}, but something"):
            RayBackend(address)
        answering.join()


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "http://10.0.0.1:8265", "ray://10.0.0.1:10001", ":1", "h:", " "],
)
def test_what_is_no_address_of_a_cluster_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "is not the address of a Ray cluster: HOST:PORT" in fault_of_address(address)
    assert [fault_of_address(good) for good in ("auto", "head:6379", "[::1]:1", None)] == [""] * 4
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert repr(address) in fault_of_address(None)
    with pytest.raises(HostUnreachable, match="is not the address of a Ray cluster"):
        RayBackend()


@pytest.mark.ray
def test_a_ray_that_does_not_start_is_no_bug_of_the_simulators(
    no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with pytest.raises(HostUnreachable, match=r"Ray does not start here: .*/proc/nowhere"):
        RayBackend()


def test_what_crosses_for_a_host_update_is_small() -> None:
    """Beyond 100 KiB an answer would go through Ray's object store."""
    fleet = load_scenario(EXAMPLES / "scale.toml", ["fleet.host_class.0.count=64"])
    (config,) = partition(fleet, make_plan(fleet), shards=1, records_events=False)
    commands = [UpdateCommand(host.name, 1, 0, NEW, UpdatePolicy()) for host in fleet.hosts]
    asked = len(pickle.dumps(commands, pickle.HIGHEST_PROTOCOL))
    answered = len(pickle.dumps(Shard(config).update(commands), pickle.HIGHEST_PROTOCOL))
    print(f"{asked / 64:.0f} and {answered / 64:.0f} bytes a host update, ten VMs each")
    assert asked < 64 * 64
    assert answered < 100 << 10


def test_a_config_comes_to_an_actor_as_it_was_and_small() -> None:
    """An actor is sent its shard's config once, which lies in the object store on its way."""
    fleet = load_scenario(EXAMPLES / "scale.toml", ["fleet.host_class.0.count=1000"])
    (config,) = partition(fleet, make_plan(fleet), shards=1, records_events=True)
    asked = UpdateCommand("node-1", 1, 0, NEW, UpdatePolicy())
    whole = replace(config, commands=(asked, HostCall("node-2", 5, "ListVms", b"")), incarnation=3)
    sent = pickle.dumps(whole)
    assert pickle.loads(sent) == whole
    assert len(sent) < 100_000  # of 11,000 hosts and VMs
