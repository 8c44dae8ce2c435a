"""The model answers scripts of system calls as the running 7.3.4 kernel did, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelmodel.conform import Script, play

RECORDINGS = Path(__file__).parent / "traces"


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.scn")), ids=lambda path: path.stem)
def test_a_recording_is_reproduced_line_by_line(path: Path) -> None:
    recorded = path.with_suffix(".trace").read_text().splitlines()
    assert list(play(Script.parse(path.read_text()))) == recorded
