"""`lufleet serve` as its users run it: a process, its address, and the examples against it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL = ROOT / "examples" / "small.toml"


@contextmanager
def serving(out: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serving process and its gRPC address; it is killed if it outlives the test."""
    command = [str(BIN / "lufleet"), "serve", str(SMALL), "--out", str(out), "--backend", "local"]
    addresses = ["--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, *addresses, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = Timer(60, process.kill)
    deadline.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"gRPC\s+(\S+)", line):
                yield process, found[1]
                break
        else:
            assert process.stderr is not None
            pytest.fail(process.stderr.read())
    finally:
        deadline.cancel()
        process.kill()
        process.communicate()


def example(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "examples" / name, *words],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, stop: signal.Signals) -> None:
    with serving(tmp_path) as (process, _):
        process.send_signal(stop)
        assert process.wait(30) == 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_large_fleet_need_not_be_up_to_be_stopped(tmp_path: Path, stop: signal.Signals) -> None:
    """It says what it boots before it does, and does not finish that first."""
    large = ROOT / "examples" / "scale.toml"
    hosts = ["--set", "fleet.host_class.0.count=500", "--backend", "local"]
    addresses = ["--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]
    with subprocess.Popen(
        [BIN / "lufleet", "serve", large, *hosts, *addresses, "--out", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "500 hosts" in process.stdout.readline()
        process.send_signal(stop)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "gRPC" not in said
    assert "stopped before the hosts were up" in errors


def test_the_example_scripts_work_against_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--speed", "6000") as (process, address):
        by_hand = example("host_update.py", "--address", address)
        assert by_hand.returncode == 0, by_hand.stderr
        assert "EEXIST" in by_hand.stdout
        rollout = example("watch_rollout.py", "--address", address)
        assert rollout.returncode == 0, rollout.stderr
        assert "completed" in rollout.stdout
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert (tmp_path / "result.json").is_file()


def test_buf_curl_reads_the_api_by_reflection_and_gets_the_errno(tmp_path: Path) -> None:
    def curl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc", *words],
            capture_output=True,
            text=True,
            check=False,
        )

    with serving(tmp_path) as (_, address):
        services = curl("--list-services", f"http://{address}").stdout.split()
        assert {"lufleet.v1.FleetService", "lufleet.v1.HostService"} <= {*services}
        url = f"http://{address}/lufleet.v1.HostService"
        names = json.loads(curl("-d", "{}", f"{url}/ListHosts").stdout)["names"]
        request = json.dumps({"host": names[0], "session": ""})
        refused = curl("-d", request, f"{url}/CreateSession")
        assert refused.returncode != 0
        assert "EINVAL" in refused.stderr


@pytest.mark.parametrize("option", ["--grpc", "--metrics"])
def test_an_address_that_is_none_is_bad_input(tmp_path: Path, option: str) -> None:
    done = subprocess.run(
        [BIN / "lufleet", "serve", SMALL, "--backend", "local", "--out", tmp_path, option, "here"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "HOST:PORT" in done.stderr
