"""Whatever an image holds: an answer, soon.

`INSPECT_FUZZ=100000 pytest tests/kernelmodel/test_inspect_fuzz.py` damages so many images;
`INSPECT_FUZZ_SEED` says where to begin.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
import time
from pathlib import Path

import pytest

from kernelmodel.image.load import NotAnImage, load_image
from kernelmodel.inspect.handover import inspect_image
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE
from tests.kernelmodel.handovers import (
    CHAINS,
    REAL,
    image_of,
    modelled_host,
    pages_of,
    poke,
    real_pages,
    tree_root,
)


def damaged(rng: random.Random, pages: dict[int, bytes], fdt_pa: int) -> int:
    """Change an image in place in some of the ways in which one can be wrong; its FDT."""
    numbers = sorted(pages)
    for _ in range(rng.randint(1, 6)):
        pfn = rng.choice(numbers)
        if pfn not in pages:
            continue
        kind = rng.randrange(7)
        word = 8 * rng.randrange(PAGE_SIZE // 8)
        if kind == 0:
            at = rng.randrange(PAGE_SIZE)
            poke(pages, (pfn << PAGE_SHIFT) + at, bytes([pages[pfn][at] ^ 1 << rng.randrange(8)]))
        elif kind == 1:
            del pages[pfn]
        elif kind == 2:
            absurd = rng.choice(
                (0, 1, 1 << 32, 1 << 51, 1 << 63, (1 << 64) - 1, rng.getrandbits(64))
            )
            used = [at for at in range(0, PAGE_SIZE, 8) if any(pages[pfn][at : at + 8])] or [word]
            poke(pages, (pfn << PAGE_SHIFT) + rng.choice(used), struct.pack("<Q", absurd))
        elif kind == 3:  # a pointer to some other page of the image: loops, shared pages
            other = rng.choice(numbers) << PAGE_SHIFT
            used = [at for at in range(0, PAGE_SIZE, 8) if any(pages[pfn][at : at + 8])] or [word]
            poke(pages, (pfn << PAGE_SHIFT) + rng.choice(used), struct.pack("<Q", other))
        elif kind == 4:
            pages[pfn] = pages.get(rng.choice(numbers), pages[pfn])
        elif kind == 5:
            pages[pfn] = rng.choice(
                (bytes(PAGE_SIZE), b"\xff" * PAGE_SIZE, rng.randbytes(PAGE_SIZE))
            )
        elif kind == 6 and rng.random() < 0.2:
            fdt_pa = rng.choice((0, rng.getrandbits(64), rng.choice(numbers) << PAGE_SHIFT))
    return fdt_pa


def test_no_damage_makes_it_raise_or_run_on() -> None:
    images = [load_image(CHAINS), modelled_host("7.3.4").image(), modelled_host().image()]
    sound = [real_pages(), *((pages_of(image), image.fdt_pa) for image in images)]
    first = int(os.environ.get("INSPECT_FUZZ_SEED", "0"))
    told = 0
    for seed in range(first, first + int(os.environ.get("INSPECT_FUZZ", "400"))):
        rng = random.Random(seed)
        pages, fdt_pa = rng.choice(sound)
        pages = dict(pages)
        fdt_pa = damaged(rng, pages, fdt_pa)
        began = time.process_time()
        said = inspect_image(image_of(pages, fdt_pa), hashes=seed % 8 == 0)
        assert time.process_time() - began < 5, seed
        json.dumps(said)
        told += "faults" in said
    assert told


def test_no_damage_to_the_file_makes_loading_raise_anything_else(tmp_path: Path) -> None:
    whole = gzip.decompress(REAL.read_bytes())
    for seed in range(150):
        rng = random.Random(seed)
        data = bytearray(rng.choice((whole, gzip.compress(whole[:30_000], 1))))
        for _ in range(rng.randint(1, 4)):
            kind, at = rng.randrange(3), rng.randrange(min(len(data), 200))
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at : at + 8] = rng.randbytes(8)
            else:
                del data[rng.randrange(200, len(data)) :]
        path = tmp_path / "image"
        path.write_bytes(data)
        try:
            image = load_image(path)
        except NotAnImage:
            continue
        json.dumps(inspect_image(image))


@pytest.mark.parametrize("filled", ["pointers", "ones", "noise"])
def test_a_tree_that_is_nothing_but_rubbish_is_given_up_soon(filled: str) -> None:
    pages, fdt_pa = real_pages()
    root = tree_root(pages, fdt_pa)
    rng = random.Random(1)
    first, nr_pages = 0x10000, 4096
    for pfn in range(first, first + nr_pages):
        if filled == "pointers":
            targets = (rng.randrange(first, first + nr_pages) << PAGE_SHIFT for _ in range(512))
            pages[pfn] = struct.pack("<512Q", *targets)
        else:
            pages[pfn] = b"\xff" * PAGE_SIZE if filled == "ones" else rng.randbytes(PAGE_SIZE)
    pages[root >> PAGE_SHIFT] = struct.pack(
        "<512Q", *(first + at << PAGE_SHIFT for at in range(512))
    )
    began = time.process_time()
    said = inspect_image(image_of(pages, fdt_pa))
    assert time.process_time() - began < 5
    assert "is not read on" in "".join(said["faults"]) or len(said["faults"]) == 101
