"""The image of a host's last jump: asked for beforehand, read afterwards."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from msgspec.structs import replace

import node.kept_image
import node.operations
from kernelmodel.image.boot import boot_image, plan_boot
from kernelmodel.image.load import load_image
from kernelmodel.inspect.handover import inspect_image
from kernelmodel.memory import MIB
from lufleet.v1 import host_pb2, host_pb2_grpc
from node.actor import ShardActor
from node.api import ShardConfig, UpdateCommand, UpdatePolicy
from node.shard import Shard
from tests.node.small_hosts import NEW, ask, host_call, shard_config

if TYPE_CHECKING:
    from lufleet.v1.host_pb2_grpc import HostServiceAsyncStub as Stub

HOST = "h1"


def keeping(**changes: object) -> ShardConfig:
    return replace(shard_config(HOST), keep_images=frozenset({HOST}), **changes)


def update_command() -> UpdateCommand:
    return UpdateCommand(HOST, 1, 0, NEW, UpdatePolicy())


def dumped(shard: Shard) -> tuple[bytes, bool]:
    """The whole file, and whether content is in it."""
    data = b""
    while True:
        reply = ask(shard, host_pb2.DumpImageRequest(host=HOST, offset=len(data)))
        assert reply.refusal is None
        chunk = host_pb2.DumpImageResponse.FromString(reply.response)
        data += chunk.data
        if len(data) == chunk.total_bytes:
            return data, chunk.has_content


def refusal(shard: Shard, offset: int = 0) -> tuple[str, str]:
    reply = ask(shard, host_pb2.DumpImageRequest(host=HOST, offset=offset))
    assert reply.refusal is not None
    return reply.refusal.reason, reply.refusal.message


@pytest.fixture
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.kept_image, "KEPT_BYTES_MAX", 4 * MIB)


@pytest.mark.usefixtures("_small_limit")
def test_a_shard_keeps_the_images_that_it_is_told_to(tmp_path: Path) -> None:
    shard = Shard(keeping())
    (result,) = shard.update([update_command()])
    data, has_content = dumped(shard)
    assert not has_content  # 320 MiB of guests
    path = tmp_path / "host.kho.gz"
    path.write_bytes(data)
    image = load_image(path)
    said = inspect_image(image)
    assert "faults" not in said
    (note,) = said["notes"]
    assert note.startswith(f"{320 * MIB // 4096} of ")
    assert [session["name"] for session in said["sessions"]] == ["h1-huge", "h1-plain"]
    assert said["hugetlb"] == {"9": 128}
    assert said["kexec_metadata"] == [1, "7.3.2+hugetlb", 1]
    booted = boot_image(image, plan_boot(image, said))
    assert [len(session["files"]) for session in booted["sessions"]] == [1, 1]
    (plain,) = Shard(shard_config(HOST)).update([update_command()])
    assert result.digest == plain.digest  # looking changes nothing


@pytest.mark.usefixtures("_small_limit")
def test_a_rebuilt_shard_has_the_same_image() -> None:
    shard = Shard(keeping())
    shard.update([update_command()])
    rebuilt = Shard(keeping(commands=(update_command(),)))
    assert dumped(rebuilt) == dumped(shard)


@pytest.mark.usefixtures("_small_limit")
@pytest.mark.parametrize("whole", [True, False])
def test_a_single_call_can_ask_for_it(*, whole: bool) -> None:
    shard = Shard(shard_config(HOST))
    assert refusal(shard) == ("NO_IMAGE", "h1: no image was asked for before a jump")
    if whole:
        ask(shard, host_pb2.UpdateHostRequest(host=HOST, release=NEW, keep_image=True))
    else:
        ask(shard, host_pb2.LoadKexecRequest(host=HOST, release=NEW))
        ask(shard, host_pb2.RebootRequest(host=HOST, keep_image=True))
    first, _ = dumped(shard)
    assert gzip.decompress(first).startswith(b"KHOIMG1\0")
    assert refusal(shard, len(first) + 1)[0] == "BAD_OFFSET"
    assert refusal(shard, -1)[0] == "BAD_OFFSET"
    ask(shard, host_pb2.LoadKexecRequest(host=HOST, release=NEW))
    ask(shard, host_pb2.RebootRequest(host=HOST))
    assert dumped(shard)[0] == first  # nobody asked for the second jump's


def test_an_image_that_fits_has_everything(tmp_path: Path) -> None:
    shard = Shard(shard_config(HOST))
    ask(shard, host_pb2.PreserveVmRequest(host=HOST, vm="h1-plain"))
    ask(shard, host_pb2.LoadKexecRequest(host=HOST, release=NEW))
    ask(shard, host_pb2.RebootRequest(host=HOST, keep_image=True))
    data, has_content = dumped(shard)
    assert has_content
    (tmp_path / "host").write_bytes(data)
    said = inspect_image(load_image(tmp_path / "host"), hashes=False)
    assert "faults" not in said
    assert said["sessions"][0]["files"][0]["size"] == 64 * MIB


def test_what_cannot_be_kept_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.kept_image, "KEPT_BYTES_MAX", 4096)
    shard = Shard(keeping())
    shard.update([update_command()])
    reason, message = refusal(shard)
    assert reason == "NO_IMAGE"
    assert "bytes even without the content of files" in message
    host = replace(shard_config(HOST).hosts[0], cmdline="kho=off")
    shard = Shard(keeping(hosts=(host,)))
    shard.host(HOST).kept_image.take(shard.host(HOST).kernel)
    assert refusal(shard) == (
        "NO_IMAGE",
        "h1: 7.3.2+hugetlb handed nothing over: it has no KHO, or KHO is off",
    )


def test_over_grpc_the_image_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.operations, "_IMAGE_CHUNK", 100)

    async def client() -> tuple[bytes, bytes]:
        actor = ShardActor(shard_config(HOST))
        try:
            async with grpc.aio.insecure_channel(await actor.grpc_address()) as channel:
                stub: Stub = host_pb2_grpc.HostServiceStub(channel)
                for request in (
                    host_pb2.LoadKexecRequest(host=HOST, release=NEW),
                    host_pb2.RebootRequest(host=HOST, keep_image=True),
                ):
                    await actor.call_host(host_call(request))
                whole = [part async for part in stub.DumpImage(image_request())]
                assert len(whole) > 1
                rest = [part.data async for part in stub.DumpImage(image_request(150))]
                return b"".join(part.data for part in whole), b"".join(rest)
        finally:
            await actor.close()

    whole, rest = asyncio.run(client())
    assert gzip.decompress(whole).startswith(b"KHOIMG1\0")
    assert rest == whole[150:]


def image_request(offset: int = 0) -> host_pb2.DumpImageRequest:
    return host_pb2.DumpImageRequest(host=HOST, offset=offset)
