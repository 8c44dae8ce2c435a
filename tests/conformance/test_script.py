"""The text of a script: machines, boots, failures, corrupted jumps, and what is wrong with them."""

from __future__ import annotations

import pytest

from fleet.recorder.failing_scripts import random_failing_script
from kernelmodel.conform import CMDLINE, Script, ScriptError, play
from kernelmodel.memory import GIB, MIB


def faults_of(text: str) -> list[str]:
    with pytest.raises(ScriptError) as caught:
        Script.parse(text)
    return [f"{line}: {what}" for line, what in caught.value.faults]


def test_a_first_line_describes_the_machine() -> None:
    huge = Script.parse("#! memory=4G nodes=2 hugepagesz=2M hugepages=3\nhstat 2M 1\n")
    assert (huge.huge, huge.node_bytes) == (True, (2 * GIB, 2 * GIB))
    assert huge.cmdline == "hugepagesz=2M hugepages=3"
    plain = Script.parse("#! plain memory=768M nodes=3\nopen d\npool 2M 3 1\n")
    assert (plain.huge, plain.node_bytes, plain.cmdline) == (False, (256 * MIB,) * 3, CMDLINE)
    assert Script.parse("open d\n").node_bytes == (2 * GIB,)


def test_lengths_count_huge_pages_only_in_scripts_about_them() -> None:
    lines = "memory=1G liveupdate=on hugepagesz=2M hugepages=4\nhmem f 2M 1\ntruncate f 2\n"
    assert list(play(Script.parse(f"#! {lines}")))[1] == "T 3 truncate ok"
    assert list(play(Script.parse(f"#! plain {lines}")))[1] == "T 3 truncate EINVAL"


def test_a_boot_can_have_parameters_and_a_kernel_of_its_own() -> None:
    script = Script.parse("open d\nkexec\nboot kernel=no-memfd kho=off\nopen d\nkexec\nopen d\n")
    assert [script.cmdline_of(boot) for boot in range(3)] == [
        CMDLINE,
        f"{CMDLINE} kho=off",
        CMDLINE,
    ]
    assert [script.kernel_of(boot) for boot in range(3)] == ["", "no-memfd", ""]
    assert [len(steps) for steps in script.boots] == [1, 1, 1]


def test_a_failure_strikes_the_call_that_it_names_and_no_other() -> None:
    script = Script.parse(
        "open d\nfail kho_alloc_preserve 2 ENOMEM\ncreate d s a\nmemfd m 0\npreserve s m 1\n"
        "preserve s m 1\nfail memfd_luo_freeze 1 EIO\ntryreboot\nkexec\n"
    )
    trace = list(play(script))
    # the session's block is the first allocation, the file's block the second
    assert trace[2:8] == [
        "T 3 create ok",
        "T 4 memfd ok",
        "T 5 preserve ENOMEM",
        "T 6 preserve ok",
        "T 7 fail ok",
        "T 8 tryreboot EIO",
    ]


def test_every_fault_of_a_first_line_is_named() -> None:
    assert faults_of("#! plain memory=2 nodes=9\nopen d\n") == [
        "1: 'memory=2' is no memory size; memory=4G is",
        "1: 'nodes=9' is no number of nodes; 1 to 8 are",
    ]
    assert faults_of("#! memory=1G nodes=3\nhstat 2M\n") == [
        "1: 1G cannot be shared equally by 3 nodes, in whole megabytes"
    ]


def test_labels_functions_errors_and_kernels_are_checked() -> None:
    text = (
        "fail luo 1 ENOMEM\nfail memfd_luo_freeze x ENOMEM\nfail memfd_luo_freeze 1 EWHAT\n"
        "fail memfd_luo_freeze 0 EIO\n"
        "kexec luo-compatibel\nboot kernel=7.4\nopen d\nboot kho=off\nkexec a b\n"
    )
    found = [fault.partition(";")[0] for fault in faults_of(text)]
    assert found == [
        "1: 'luo' cannot be made to fail",
        "2: 'x' is no number",
        "3: 'EWHAT' is no error",
        "4: '0' is no call",
        "5: 'luo-compatibel' is no corruption",
        "6: '7.4' is no kernel",
        "8: a boot line stands before all operations of its boot",
        "9: kexec takes one label at most",
    ]
    assert "did you mean luo-compatible?" in faults_of("kexec luo-compatibel\n")[0]


def test_numbers_are_those_that_a_c_program_reads_alike() -> None:
    text = (
        "seek m 1_000\nseek m +5\npreserve s m 18446744073709551616\nfill m 0 8589934592 1\n"
        "rawin d 4097 1 2\nrawin d xr 1 2\nload 0 72r\n"
        "preserve s m -1\nrawin d 72r 1 2\nload 0 4096\n"
    )
    assert [fault.partition(";")[0] for fault in faults_of(text)] == [
        "1: '1_000' is no number",
        "2: '+5' is no number",
        "3: '18446744073709551616' does not fit in 64 bits",
        "4: '8589934592' is more than the 4294967296 bytes that it can be",
        "5: '4097' is more than the 4096 bytes that it can be",
        "6: 'x' is no number",
        "7: '72r' is no number",
    ]


def test_a_random_failing_script_is_a_function_of_its_number() -> None:
    scripts = [random_failing_script(3, index) for index in range(8)]
    assert scripts == [random_failing_script(3, index) for index in range(8)]
    assert all("fail " in text for text in scripts)
    for text in scripts:
        assert list(play(Script.parse(text)))


def test_what_fails_fits_under_a_debugger() -> None:
    scripts = [Script.parse(random_failing_script(91003, index)) for index in range(60)]
    machines = {script.node_bytes for script in scripts}
    assert max(max(nodes) for nodes in machines) == 3 * GIB
    assert {len(nodes) for nodes in machines} == {1}
