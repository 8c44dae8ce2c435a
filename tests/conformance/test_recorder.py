"""A real kernel answers the recordings again: where the variable LUFLEET_KERNEL names its bzImage.

Without it there is nothing here to run; docs/recording.md says how to build such a kernel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.recorder.compare import Comparison
from fleet.recorder.record import Recorder
from fleet.recorder.scripts import random_script
from kernelmodel.script import Script

KERNEL = os.environ.get("LUFLEET_KERNEL", "")
NO_MEMFD = os.environ.get("LUFLEET_KERNEL_NO_MEMFD", "")
OTHERS = {"no-memfd": Path(NO_MEMFD)} if NO_MEMFD else {}
RECORDINGS = [
    path
    for folder in ("traces", "corrupted")
    for path in sorted((Path(__file__).parent / folder).glob("*.scn"))
    if {given.kernel for given in Script.parse(path.read_text()).given} <= {"", *OTHERS}
]
SEED = 1
NUMBER = 10

if KERNEL:

    @pytest.fixture(scope="module")
    def recorder() -> Iterator[Recorder]:
        with Recorder(Path(KERNEL), others=OTHERS) as one:
            yield one

    @pytest.mark.timeout(900)
    @pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
    def test_a_kernel_of_ones_own_gives_the_recorded_trace(recorder: Recorder, path: Path) -> None:
        recording = recorder.record(path.read_text())
        assert list(recording.trace) == path.with_suffix(".trace").read_text().splitlines()

    @pytest.mark.timeout(900)
    @pytest.mark.parametrize("index", range(NUMBER))
    def test_model_and_kernel_answer_random_scripts_alike(recorder: Recorder, index: int) -> None:
        text = random_script(SEED, index)
        assert Comparison.of(text, recorder.record(text).trace).difference is None
