"""What is wrong with a corrupted handover is named from its bytes, where bytes can tell."""

from __future__ import annotations

from functools import cache

import pytest

from kernelmodel.corruptions.catalogue import CORRUPTIONS, corrupt
from kernelmodel.corruptions.handed_over import NotThere
from kernelmodel.image.frames import Image, SparseFrames
from kernelmodel.inspect.handover import inspect_image
from kernelmodel.memory import PhysicalMemory
from tests.sim.spoilt_handovers import sound

#: Nothing is wrong with the bytes: another number would be as good, or they are in no image.
INVISIBLE = {
    *(label for label in CORRUPTIONS if label.startswith("scratch-")),
    *("luo-number-max", "metadata-count-max", "folio-content"),
    *("flb-count-zero", "flb-name-unknown", "flb-data-wrong"),
    *("key-of-gigabyte", "key-of-folio-larger"),  # not of these handovers
}
#: A word or two of the sentence that names it; for all others there is one.
TOLD = {
    "fdt-totalsize": "said to have 8192 bytes",
    "luo-subtree-missing": "belong to nothing",
    "sessions-none": "belong to nothing",
    "session-block-count-less": "belong to nothing",
    "session-block-count-zero": "has 0 entries",
    "session-block-loop": "reached twice",
    "tree-node-outside": "not in the image",
    "key-of-spare-frame": "belong to nothing",
    "key-overlap": "preserved twice",
    "file-token-twice": "two files with the token",
    "memfd-entry-absent": "belong to nothing",
    "folio-not-uptodate": "not up to date",
    "folio-twice": "twice",
}


def image(kind: str, memory: PhysicalMemory, fdt_pa: int) -> Image:
    frames = {*memory._pages, *sound(kind).content, *sound(kind).metadata}
    return Image(SparseFrames({pfn: bytes(memory.page(pfn)) for pfn in frames}), fdt_pa)


@cache
def faults(label: str) -> list[str]:
    for kind in ("plain", "long"):
        given = sound(kind)
        memory = given.memory()
        try:
            firmware = corrupt(CORRUPTIONS[label], memory, given.firmware)
        except NotThere:
            continue
        assert firmware.fdt is not None
        found: list[str] = inspect_image(image(kind, memory, firmware.fdt[0])).get("faults", [])
        return found
    return []


@pytest.mark.parametrize("kind", ["plain", "long"])
def test_a_sound_handover_has_none(kind: str) -> None:
    given = sound(kind)
    assert given.firmware.fdt is not None
    assert "faults" not in inspect_image(image(kind, given.memory(), given.firmware.fdt[0]))


@pytest.mark.parametrize("label", CORRUPTIONS)
def test_a_corruption_is_named(label: str) -> None:
    # one session less of fifty-three without files is nothing that anybody misses
    silent = label in INVISIBLE or label == "session-block-short"
    assert bool(faults(label)) == (not silent)
    assert TOLD.get(label, "") in "\n".join(faults(label))
