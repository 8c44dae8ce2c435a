"""The model answers scripts of system calls as the running 7.3.4 kernel did, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernelmodel.conform import Host, Script, ScriptError, play
from kernelmodel.errors import KernelError, KernelPanic
from kernelmodel.mm.hugetlb import validate_hugetlb
from kernelmodel.mm.page_alloc import validate_page_alloc
from kernelmodel.releases import CATALOGUE
from kernelmodel.validate import validate_kernel

TRACES = Path(__file__).parent / "traces"
RECORDINGS = sorted(TRACES.glob("*.scn"))

#: What differs where a huge page memfd is not refused; pages that no pool has are not preserved.
TAKES_HUGE_PAGES = {
    "900": [("T 35 preserve ENOENT", "T 35 preserve ENOSPC")],
    "huge-memfd": [
        ("T 31 preserve ENOENT", "T 31 preserve ENOSPC"),
        ("T 32 preserve ENOENT", "T 32 preserve ENOSPC"),
    ],
}


def recorded(path: Path) -> list[str]:
    return path.with_suffix(".trace").read_text().splitlines()


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_is_reproduced_line_by_line(path: Path) -> None:
    assert list(play(Script.parse(path.read_text()))) == recorded(path)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_kernel_is_consistent_after_every_line(path: Path) -> None:
    script = Script.parse(path.read_text())
    host = Host(script, CATALOGUE["7.3.4"])
    kernel = host.power_on()
    for boot in range(len(script.boots)):
        for _ in host.run_boot(kernel, boot):
            assert host.task is not None
            if script.huge:  # mappings hold huge pages that no descriptor names
                validate_hugetlb(kernel.hugetlb)
                validate_page_alloc(kernel.page_alloc)
            else:
                validate_kernel(kernel, [host.task])
        if boot + 1 < len(script.boots):
            try:
                kernel = host.boot(*host.kexec(kernel))
            except (KernelPanic, KernelError):
                assert recorded(path)[-1] == f"T end {boot + 1}"
                return


def test_a_release_with_the_proposal_answers_recordings_alike_but_takes_huge_pages() -> None:
    for path in RECORDINGS:
        lines = list(play(Script.parse(path.read_text()), "7.3.4+hugetlb"))
        differences = [(a, b) for a, b in zip(recorded(path), lines, strict=True) if a != b]
        assert differences == TAKES_HUGE_PAGES.get(path.stem, []), path.stem


def test_every_fault_of_a_script_is_named_with_its_line() -> None:
    text = "open d\nfly d\nfill d 0 x 1\n\nseek d\npool 2M 3\nfill d 0 1 2 3\n"
    with pytest.raises(ScriptError) as caught:
        Script.parse(text)
    assert [(line, what.partition(";")[0]) for line, what in caught.value.faults] == [
        (2, "'fly' is no operation"),
        (3, "'x' is no number"),
        (5, "seek takes 2 arguments, not 1"),
        (6, "'pool' is no operation"),
        (7, "fill takes 4 arguments, not 5"),
    ]
    with pytest.raises(ScriptError, match="line 1: 'memory=lots'"):
        Script.parse("#! memory=lots\nhstat 4M\n")


def test_comments_and_empty_lines_are_skipped_but_counted() -> None:
    assert list(play(Script.parse("# a\n\nopen d\n"))) == ["T 3 open ok", "T end 1"]


def test_51_sessions_and_a_refused_duplicate_panic_the_next_kernel() -> None:
    creates = [f"create d s{n} vm-{n}" for n in range(51)]
    script = Script.parse("\n".join(["open d", *creates, "create d x vm-7", "kexec", "open d"]))
    trace = list(play(script))
    assert trace[-2:] == ["T 53 create EEXIST", "T end 1"]
    # one more session uses the block that the refused one left, or a close removes it
    for cure in ("create d y vm-new", "close s3"):
        lines = ["open d", *creates, "create d x vm-7", cure, "kexec", "open d"]
        assert list(play(Script.parse("\n".join(lines))))[-1] == "T end 2"
