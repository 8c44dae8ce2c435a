"""The recorder's debugger, against a peer that answers as QEMU's stub does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet.recorder.debugger import Debugger, DebuggerError
from fleet.recorder.stops import RecorderError, SystemMap


@contextmanager
def debugging(tmp_path: Path, answers: list[tuple[str, str | None]]) -> Iterator[Debugger]:
    """A debugger whose peer expects these requests; None: the machine goes off."""
    asked: list[str] = []
    path = tmp_path / "stub"

    def stub() -> None:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            unread = b""
            for _, answer in [("", "l<target/>"), *answers]:
                while unread.count(b"#") == 0 or len(unread.rpartition(b"#")[2]) < 2:
                    unread += peer.recv(4096)
                asked.append(unread.partition(b"$")[2].partition(b"#")[0].decode())
                unread = b""
                if answer is None:
                    return
                data = answer.encode()
                packet = b"+$%b#%02x" % (data, sum(data) & 0xFF)
                peer.sendall(packet[:3])  # a packet may come in pieces
                peer.sendall(packet[3:])
                assert peer.recv(1) == b"+"

    with Debugger(path) as debugger:
        thread = threading.Thread(target=stub)
        thread.start()
        try:
            debugger.accept(10)
            yield debugger
        finally:
            thread.join()
    assert asked[1:] == [request for request, _ in answers]


def word(value: int) -> str:
    return value.to_bytes(8, "little").hex()


def test_it_runs_from_one_breakpoint_to_the_next_until_the_machine_is_off(tmp_path: Path) -> None:
    answers: list[tuple[str, str | None]] = [
        ("Z1,1000,1", "OK"),
        ("p10", word(0xFFF0)),
        ("c", "T05thread:01;"),
        ("p10", word(0x1000)),
        # it stands at a breakpoint: one step without it, then on
        ("p10", word(0x1000)),
        ("z1,1000,1", "OK"),
        ("s", "T05thread:01;"),
        ("p10", word(0x1004)),
        ("Z1,1000,1", "OK"),
        ("c", None),
    ]
    with debugging(tmp_path, answers) as debugger:
        debugger.break_at(0x1000)
        debugger.break_at(0x1000)
        assert debugger.run(10) == 0x1000
        assert debugger.run(10) is None


def test_a_step_that_was_cut_short_is_no_second_stop(tmp_path: Path) -> None:
    """Or one call of a function would count twice."""
    answers: list[tuple[str, str | None]] = [
        ("Z1,1000,1", "OK"),
        ("p10", word(0x1000)),
        ("z1,1000,1", "OK"),
        ("s", "T05thread:01;"),
        ("p10", word(0x1000)),  # a timer of QEMU's came first
        ("s", "T05thread:01;"),
        ("p10", word(0x1004)),
        ("Z1,1000,1", "OK"),
        ("c", "T05thread:01;"),
        ("p10", word(0x2000)),
    ]
    with debugging(tmp_path, answers) as debugger:
        debugger.break_at(0x1000)
        assert debugger.run(10) == 0x2000


def test_a_machine_that_no_step_moves_is_an_error(tmp_path: Path) -> None:
    standing: list[tuple[str, str | None]] = [("s", "T05thread:01;"), ("p10", word(0x1000))]
    answers: list[tuple[str, str | None]] = [
        ("Z1,1000,1", "OK"),
        ("p10", word(0x1000)),
        ("z1,1000,1", "OK"),
        *standing * 100,
    ]
    with debugging(tmp_path, answers) as debugger:
        debugger.break_at(0x1000)
        with pytest.raises(DebuggerError, match="nowhere from 0x1000"):
            debugger.run(10)


def test_a_function_is_left_with_an_error_in_its_place(tmp_path: Path) -> None:
    answers: list[tuple[str, str | None]] = [
        ("p7", word(0x8000)),
        ("m8000,8", word(0x4242)),
        ("P0=f4" + "ff" * 7, "OK"),
        ("P10=" + word(0x4242), "OK"),
        ("P7=" + word(0x8008), "OK"),
    ]
    with debugging(tmp_path, answers) as debugger:
        debugger.skip_function(-12)


def test_text_is_read_up_to_its_end_and_a_refusal_is_an_error(tmp_path: Path) -> None:
    answers: list[tuple[str, str | None]] = [
        ("m2000,10", b"fail kho_alloc_p".hex()),
        ("m2010,10", (b"reserve 1 EIO\0" + bytes(2)).hex()),
        ("m3000,10", "E14"),
    ]
    with debugging(tmp_path, answers) as debugger:
        assert debugger.read_text(0x2000) == "fail kho_alloc_preserve 1 EIO"
        with pytest.raises(DebuggerError, match="0x3000"):
            debugger.read_text(0x3000)


def test_a_system_map_is_found_beside_the_image_or_in_its_tree(tmp_path: Path) -> None:
    boot = tmp_path / "linux" / "arch" / "x86" / "boot"
    boot.mkdir(parents=True)
    with pytest.raises(RecorderError, match=r"no .*/boot/System.map nor .*/linux/System.map"):
        SystemMap(boot / "bzImage", None)
    (tmp_path / "linux" / "System.map").write_text("ffffffff81039e85 T machine_kexec\n")
    found = SystemMap(boot / "bzImage", None)
    assert found.address("machine_kexec") == 0xFFFFFFFF81039E85
    with pytest.raises(RecorderError, match="no function kho_populate"):
        found.address("kho_populate")
    (tmp_path / "notes").write_text("## no addresses\n")
    with pytest.raises(RecorderError, match=r"no System\.map"):
        SystemMap(boot / "bzImage", tmp_path / "notes")
