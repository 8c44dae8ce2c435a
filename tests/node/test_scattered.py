"""VMs on scattered 4 KiB pages: they live on, and many pages at once are as one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

import kernelmodel.kho.radix_pages
import kernelmodel.mm.extents
from kernelmodel.image.load import load_image
from kernelmodel.inspect.handover import inspect_image
from kernelmodel.memory import MIB, PAGE_SHIFT, PhysicalMemory
from kernelmodel.validate import validate_kernel
from node.api import Backing, HostOutcome, VmSpec
from node.host import Host
from node.vm import memory_extents
from tests.node.scattered import start_scattered
from tests.node.update_hosts import HOST, NEW, fault, make_host, update

MEMORY = 8 * MIB
VM = VmSpec("scattered", HOST, MEMORY, Backing.MEMFD, 2)
SCATTERED = 1500


def scattered_host(pages: int = SCATTERED) -> Host:
    host = make_host(vms=[VM], pools=())
    start_scattered(host, VM.name, pages)
    return host


def frames_of(host: Host) -> list[tuple[int, int]]:
    frames = memory_extents(host.vm(VM.name).file)
    assert frames is not None
    return frames


def pages_of(host: Host) -> list[bytes]:
    memory = host.machine.memory
    return [bytes(memory.page(pfn + i)) for pfn, nr in frames_of(host) for i in range(nr)]


def test_memory_is_scattered_and_survives_two_updates_where_it_is() -> None:
    host = scattered_host()
    before = frames_of(host)
    assert sum(nr == 1 for _, nr in before) >= SCATTERED
    host.pause_vm(VM.name)  # a guest that stands still writes nothing
    content = pages_of(host)
    assert len(set(content)) == MEMORY >> PAGE_SHIFT
    for _ in range(2):
        result = update(host, NEW)
        assert (result.outcome, result.reason) == (HostOutcome.UPDATED, "")
        checked_kernel(host)
        assert frames_of(host) == before
        assert pages_of(host) == content


def test_a_guest_goes_on_writing_to_scattered_memory() -> None:
    host = scattered_host()
    versions = [pages_of(host)]
    for _ in range(3):
        assert not update(host).reason
        versions.append(pages_of(host))
        changed = sum(a != b for a, b in zip(versions[-2], versions[-1], strict=True))
        assert changed == (MEMORY >> PAGE_SHIFT) // 16
        checked_kernel(host)


def checked_kernel(host: Host) -> None:
    vm, agent = host.vm(VM.name), host.agent
    assert vm.task is not None
    assert agent is not None
    validate_kernel(host.kernel, [vm.task, agent.task])


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts as many."""
    for module in (kernelmodel.mm.extents, kernelmodel.kho.radix_pages):
        monkeypatch.setattr(module, "FEW_RUNS", 1 << 60)


@pytest.mark.parametrize("kind", ["", "drop-preserved-page", "corrupt-folio-entry"])
def test_many_pages_at_once_are_as_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """To the last event, nanosecond and free block; with damaged memory too."""
    digests, buddies = [], []
    for single in (False, True):
        with monkeypatch.context() as patch:
            if single:
                one_by_one(patch)
            host = scattered_host()
            if kind:
                host.inject(fault(kind))
            result = update(host)
            assert result.reason == ("vm-lost" if kind else "")
            assert not update(host).reason
            digests.append(host.trace.hexdigest())
            buddies.append(host.kernel.page_alloc.buddyinfo())
    assert digests[0] == digests[1]
    assert buddies[0] == buddies[1]


def test_an_image_of_it_can_be_inspected(tmp_path: Path) -> None:
    host = scattered_host()
    host.kept_image.wanted = True
    assert not update(host).reason
    path = tmp_path / "host.kho.gz"
    path.write_bytes(host.kept_image.data)
    said = inspect_image(load_image(path), hashes=False)
    assert "faults" not in said
    (session,) = said["sessions"]
    (file,) = session["files"]
    assert file["size"] == MEMORY


def test_memory_in_a_file_is_the_same(tmp_path: Path) -> None:
    host = scattered_host(pages=300)
    memory, spec = host.machine.memory, host.machine.spec
    path = tmp_path / "memory"
    memory.save(path)
    loaded = PhysicalMemory.load(path, spec.memory_map())
    frames = frames_of(host)
    assert pages_of(host) == [bytes(loaded.page(pfn + i)) for pfn, nr in frames for i in range(nr)]
