"""What the model leaves in memory at a jump is what a real kernel left, byte for byte.

`dumps/NAME-K.kho.gz` is what a real 7.3.4 kernel handed over at jump K of `dumps/NAME.scn`, written
by `lufleet record --dump-image`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelmodel import kexec
from kernelmodel.conform import Host, Script
from kernelmodel.image.write import gzipped_image, handover_of
from tests.conformance.kho_reader import PAGE, Image
from tests.conformance.same_handover import differences

DUMPS = Path(__file__).parent / "dumps"
NAMES = sorted(path.name.removesuffix(".kho.gz") for path in DUMPS.glob("*.kho.gz"))


def modelled(name: str, tmp_path: Path) -> Image:
    """The model's handover at the same jump."""
    script, _, jump = name.rpartition("-")
    host = Host(Script.parse((DUMPS / f"{script}.scn").read_text()))
    kernel = host.power_on()
    for index in range(int(jump)):
        if index:
            kernel = host.boot(*host.kexec(kernel))
        list(host.run_boot(kernel, index))
    kexec.kernel_kexec(kernel)
    (tmp_path / "model.kho").write_bytes(gzipped_image(handover_of(kernel)))
    return Image.load(tmp_path / "model.kho")


@pytest.mark.parametrize("name", NAMES)
def test_the_model_hands_over_the_same_bytes(name: str, tmp_path: Path) -> None:
    real = Image.load(DUMPS / f"{name}.kho.gz")
    assert differences(real, modelled(name, tmp_path)) == []


def test_a_byte_that_differs_is_found_wherever_it_is(tmp_path: Path) -> None:
    name = "files-and-holes-2"
    real, model = Image.load(DUMPS / f"{name}.kho.gz"), modelled(name, tmp_path)
    fdt = real.fdt_pa // PAGE
    unseen = []
    for frame, page in real.pages.items():
        at = next((at for at in range(PAGE - 1, -1, -1) if page[at]), None)
        if at is None:
            continue
        flipped = page[:at] + bytes([page[at] ^ 1]) + page[at + 1 :]
        spoilt = Image(real.fdt_pa, {**real.pages, frame: flipped})
        if frame != fdt and not differences(spoilt, model):
            unseen.append(frame)
    assert unseen == []
