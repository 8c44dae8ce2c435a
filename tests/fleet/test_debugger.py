"""The recorder's debugger, against a peer that answers as QEMU's stub does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleet.recorder.debugger import Debugger, DebuggerError
from fleet.recorder.stops import RECORDER_SECTION, RecorderError, Stops, SystemMap


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
                    more = peer.recv(4096)
                    if not more:
                        return  # the test has failed
                    unread += more
                asked.append(unread.partition(b"$")[2].partition(b"#")[0].decode())
                unread = b""
                if answer is None:
                    return
                data = answer.encode()
                packet = b"+$%b#%02x" % (data, sum(data) & 0xFF)
                peer.sendall(packet[:3])  # a packet may come in pieces
                peer.sendall(packet[3:])
                assert peer.recv(1) == b"+"

    thread = threading.Thread(target=stub)
    try:
        with Debugger(path) as debugger:
            thread.start()
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


def asks(request: str) -> list[tuple[str, str | None]]:
    """What the recorder wants to know when the player asks for something."""
    data = request.encode().ljust(256, b"\0")
    pieces = [("m" + f"{0x8000 + at:x},10", data[at : at + 16]) for at in range(0, 256, 16)]
    read = next(at for at, (_, piece) in enumerate(pieces) if b"\0" in piece) + 1
    return [("p5", word(0x8000)), *((asked, piece.hex()) for asked, piece in pieces[:read])]


def returns(errno: int) -> list[tuple[str, str | None]]:
    """How a function is left."""
    return [
        ("p7", word(0x9000)),
        ("m9000,8", word(0x4242)),
        ("P0=" + word((1 << 64) - errno), "OK"),
        ("P10=" + word(0x4242), "OK"),
        ("P7=" + word(0x9008), "OK"),
    ]


def test_failures_that_wait_side_by_side_each_count_every_call(tmp_path: Path) -> None:
    (tmp_path / "System.map").write_text(
        "ffffffff81039e85 T machine_kexec\nffffffff8112a298 t memfd_luo_preserve\n"
    )
    here = 0xFFFF_FFFF_8112_A298
    answers = [
        *asks("fail memfd_luo_preserve 1 EIO"),
        (f"Z1,{here:x},1", "OK"),
        *asks("fail memfd_luo_preserve 0x3 EBUSY"),
        *asks("fail memfd_luo_preserve 03 ENOMEM"),
        *returns(5),
        (f"z1,{here:x},1", "OK"),  # nothing waits after the third
        *returns(16),
    ]
    with debugging(tmp_path, answers) as debugger:
        stops = Stops(SystemMap(tmp_path / "bzImage", None), tmp_path / "memory", ())
        for at in [RECORDER_SECTION] * 3 + [here] * 3:
            stops.handle(debugger, at)


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
