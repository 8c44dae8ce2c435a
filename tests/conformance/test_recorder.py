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
#: Of a function that fails at the last but one.
CALLS = 1000

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
    def test_a_call_counts_once_however_many_there_were(recorder: Recorder) -> None:
        """QEMU cuts one step in some hundreds short: such a one is no second call."""
        lines = ["open d", "memfd m 0", *(f"create d s{n} n{n}" for n in range(20))]
        lines.append(f"fail memfd_luo_preserve {CALLS} EIO")
        for call in range(CALLS + 1):
            lines += [f"preserve s{call % 20} m {call}", "close m", "memfd m 0"]
        text = "\n".join(lines) + "\n"
        trace = recorder.record(text).trace
        assert [line.split()[-1] for line in trace].index("EIO") == len(trace) - 7
        assert Comparison.of(text, trace).difference is None

    @pytest.mark.timeout(900)
    @pytest.mark.parametrize("index", range(NUMBER))
    def test_model_and_kernel_answer_random_scripts_alike(recorder: Recorder, index: int) -> None:
        text = random_script(SEED, index)
        assert Comparison.of(text, recorder.record(text).trace).difference is None
