"""A fleet that was stopped goes on: hosts as they were, the rollout from where it was."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
import subprocess
from pathlib import Path
from socket import create_server
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest

from fleet.experiment import run_rollout
from fleet.journal import Journal, journal_header
from fleet.launcher import LocalBackend
from fleet.server import Endpoints, serve
from fleet.unwritable import CannotWrite
from lufleet.v1 import fleet_pb2, fleet_pb2_grpc, host_pb2, host_pb2_grpc
from node.api import HostCall, ShardConfig
from tests.e2e.served import served
from tests.e2e.test_grpc_hosts import FLEET, HOSTS, reason
from tests.e2e.test_grpc_serve import BIN, SMALL, serving
from tests.fleet.toys import ROLLOUT, SCENARIO, ToyBackend, ToyHandle

if TYPE_CHECKING:
    from lufleet.v1.fleet_pb2_grpc import FleetServiceAsyncStub as FleetStub
    from lufleet.v1.host_pb2_grpc import HostServiceAsyncStub as Stub

WATCH = fleet_pb2.WatchRolloutRequest()


def test_acknowledged_calls_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"

    async def sessions(stub: Stub) -> list[str]:
        host = (await stub.GetHost(host_pb2.GetHostRequest(host=HOSTS[1]))).host
        return [session.name for session in host.sessions]

    async def creates(endpoints: Endpoints) -> list[str]:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            await stub.CreateSession(host_pb2.CreateSessionRequest(host=HOSTS[1], session="mine"))
            return await sessions(stub)

    async def looks(endpoints: Endpoints) -> list[str]:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            return await sessions(host_pb2_grpc.HostServiceStub(channel))

    assert served(creates, FLEET, LocalBackend(), journal_path=path) == ["mine"]
    assert served(looks, FLEET, LocalBackend(), journal_path=path, resume=True) == ["mine"]


@pytest.mark.parametrize("paused", [False, True])
def test_a_rollout_goes_on_from_where_it_was(tmp_path: Path, *, paused: bool) -> None:
    path = tmp_path / "journal.sqlite"

    async def starts(endpoints: Endpoints) -> None:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: FleetStub = fleet_pb2_grpc.FleetServiceStub(channel)
            await stub.StartRollout(fleet_pb2.StartRolloutRequest())
            async for told in stub.WatchRollout(WATCH):
                if told.status.wave == 1:
                    break
            if paused:
                await stub.PauseRollout(fleet_pb2.PauseRolloutRequest())

    async def ends(endpoints: Endpoints) -> tuple[fleet_pb2.RolloutStatus, str]:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: FleetStub = fleet_pb2_grpc.FleetServiceStub(channel)
            async for told in stub.WatchRollout(WATCH):
                first = told.status
                break
            if paused:
                await stub.ResumeRollout(fleet_pb2.ResumeRolloutRequest())
            async for _ in stub.WatchRollout(WATCH):
                pass
            return first, (await stub.GetResult(fleet_pb2.GetResultRequest())).digest

    served(starts, SCENARIO, ToyBackend(), journal_path=path, speed=3000)
    first, digest = served(ends, SCENARIO, ToyBackend(), journal_path=path, resume=True, speed=3000)
    assert first.wave >= 1
    assert first.virtual_time_ns >= ROLLOUT.canary_soak_ns
    if paused:
        assert first.state == fleet_pb2.ROLLOUT_STATE_PAUSED
    else:
        assert digest == asyncio.run(run_rollout(SCENARIO, ToyBackend())).digest


def test_a_call_that_cannot_be_journaled_is_refused_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(_: Journal, call: HostCall) -> None:
        raise CannotWrite(tmp_path, f"no room for {call.method}")

    async def client(endpoints: Endpoints) -> None:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: Stub = host_pb2_grpc.HostServiceStub(channel)
            session = host_pb2.CreateSessionRequest(host=HOSTS[0], session="mine")
            assert await reason(stub.CreateSession(session)) == "JOURNAL_UNWRITABLE"
            host = (await stub.GetHost(host_pb2.GetHostRequest(host=HOSTS[0]))).host
            assert not host.sessions

    monkeypatch.setattr(Journal, "called", is_full)
    served(client, FLEET, LocalBackend())


def test_a_rollout_that_cannot_be_journaled_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*_: object) -> None:
        raise CannotWrite(tmp_path, "no room")

    async def client(endpoints: Endpoints) -> None:
        async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
            stub: FleetStub = fleet_pb2_grpc.FleetServiceStub(channel)
            await stub.StartRollout(fleet_pb2.StartRolloutRequest())
            with pytest.raises(grpc.aio.AioRpcError, match="no room"):
                async for _ in stub.WatchRollout(WATCH):
                    pass

    monkeypatch.setattr(Journal, "sent", is_full)
    with pytest.raises(CannotWrite, match="no room"):
        served(client, SCENARIO, ToyBackend())


def again(said: str) -> list[str]:
    """The words of the command that goes on, which a server that was stopped prints last."""
    words = shlex.split(said.splitlines()[-1])
    assert words[:2] == ["lufleet", "serve"]
    assert words[-1] == "--resume"
    return words


def stop(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    return process.returncode, said


def test_a_used_directory_is_refused_and_the_line_that_is_printed_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path, "--start", "--speed", "0.01") as (process, address):
        with grpc.insecure_channel(address) as channel:  # until a host is under way
            for told in fleet_pb2_grpc.FleetServiceStub(channel).WatchRollout(WATCH):
                if told.status.hosts["updating"]:
                    break
        code, said = stop(process)
    assert code == 130
    assert "the rollout was under way (canary)" in said
    assert f"are kept in {tmp_path}" in said
    again(said)
    refused = subprocess.run(
        [BIN / "lufleet", "serve", SMALL, "--out", tmp_path, "--backend", "local"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "holds what was done to a fleet already" in refused.stderr
    assert "--resume" in refused.stderr
    assert "another directory with --out" in refused.stderr
    with serving(tmp_path, "--resume", "--speed", "inf") as (process, address):
        with grpc.insecure_channel(address) as channel:
            assert [*fleet_pb2_grpc.FleetServiceStub(channel).WatchRollout(WATCH)]
        assert process.stdout is not None
        assert any(line.startswith("rollout completed at ") for line in process.stdout)
        code, said = stop(process)
    assert code == 0, said
    assert "the rollout was completed" in said
    again(said)
    assert json.loads((tmp_path / "result.json").read_text())["rollout"]["state"] == "completed"


def test_an_aborted_rollout_ends_with_3_and_an_idle_fleet_with_0(tmp_path: Path) -> None:
    with serving(tmp_path, "--resume", "--speed", "1") as (process, address):
        with grpc.insecure_channel(address) as channel:
            stub = fleet_pb2_grpc.FleetServiceStub(channel)
            stub.StartRollout(fleet_pb2.StartRolloutRequest())
            stub.AbortRollout(fleet_pb2.AbortRolloutRequest(reason="enough"))
        code, said = stop(process)
    assert code == 3, said
    assert "the rollout was aborted" in said
    for _ in range(2):  # nothing is done to it: nothing would be lost by beginning anew
        with serving(tmp_path / "idle") as (process, _):
            code, said = stop(process)
        assert code == 0
        assert "the rollout was not started" in said
        again(said)


def test_a_scrape_sees_nothing_of_a_fleet_that_is_not_up_again(tmp_path: Path) -> None:
    """Zeros would be a reset of every counter, and what was before would count twice."""
    with create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pages = [f"http://{address}/metrics", f"http://{address}/metrics/hosts"]
    seen: list[int] = []

    class Scraped(ToyBackend):
        def spawn(self, config: ShardConfig) -> ToyHandle:
            for page in pages:
                with pytest.raises(HTTPError) as refused:
                    urlopen(page)
                seen.append(refused.value.code)
                refused.value.close()
            return super().spawn(config)

    async def scrapes() -> list[str]:
        stop, shown = asyncio.Event(), []

        def look(_: Endpoints) -> None:
            for page in pages:
                with urlopen(page) as answer:
                    shown.append(answer.read().decode())
            stop.set()

        header = journal_header(SCENARIO, records_events=False)
        with Journal.create(tmp_path / "journal.sqlite", header) as journal:
            await serve(
                *(SCENARIO, Scraped(), journal, stop),
                grpc_address="127.0.0.1:0",
                metrics_address=address,
                on_ready=look,
            )
        return shown

    fleet, hosts = asyncio.run(scrapes())
    assert seen
    assert set(seen) == {503}
    assert "lufleet_rollout_wave -1.0" in fleet
    assert 'state="pending"' in hosts
