"""The model makes of a corrupted handover what a real 7.3.4 kernel made of it, line by line.

Each row of `corrupted/` has a jump `kexec LABEL`. Where a trace ends early, the kernel panicked,
hung or reset the machine; how is no part of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelmodel.conform import Script, play
from kernelmodel.corruptions.catalogue import CORRUPTIONS

ROWS = sorted((Path(__file__).parent / "corrupted").glob("*.scn"))

#: Labels that no kernel was asked about yet; docs/recording.md says how.
NOT_ASKED: set[str] = set()


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_corrupted_handover_ends_as_it_did_for_the_kernel(path: Path) -> None:
    trace = list(play(Script.parse(path.read_text())))
    assert trace == path.with_suffix(".trace").read_text().splitlines()


def test_every_corruption_was_tried_on_the_kernel() -> None:
    asked = {label for path in ROWS for label in Script.parse(path.read_text()).corruptions}
    assert set(CORRUPTIONS) - asked == NOT_ASKED
