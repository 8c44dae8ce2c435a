"""Corruptions of the files of a session. C: kernel/liveupdate/luo_file.c, kho_block.c, 7.3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kernelmodel.abi.kexec_handover import KhoBlockHeaderSer
from kernelmodel.abi.luo import LuoFileSer, LuoSessionSer
from kernelmodel.corruptions.corruption import Corruption, Outcome
from kernelmodel.corruptions.handed_over import Found, HandedOver
from kernelmodel.corruptions.reader import Write
from kernelmodel.memory import PAGE_SIZE

__all__ = ["CORRUPTIONS"]

_DIR: Final = "kernel/liveupdate"
_DESERIALIZE: Final = f"luo_file_deserialize(), {_DIR}/luo_file.c"
_RESTORE: Final = f"kho_block_set_restore(), {_DIR}/kho_block.c"
_LATCHED: Final = "the error at the first open is latched"


def _session(
    change: Callable[[HandedOver, Found[LuoSessionSer]], Write], nr_files: int = 1
) -> Callable[[HandedOver], list[Write]]:
    """Change the entry of the first session with files."""
    return lambda handed: [change(handed, handed.session_with_files(nr_files))]


def _block(
    change: Callable[[HandedOver, Found[KhoBlockHeaderSer]], Write],
) -> Callable[[HandedOver], list[Write]]:
    """Change the last block of the files of the first session that has any."""
    return lambda handed: [change(handed, handed.blocks(handed.session_with_files().ser.files)[-1])]


def _file(
    change: Callable[[HandedOver, Found[LuoFileSer]], Write],
) -> Callable[[HandedOver], list[Write]]:
    """Change the first file of the first session that has any."""
    return lambda handed: [change(handed, handed.files(handed.session_with_files())[0])]


def _same_token(handed: HandedOver) -> list[Write]:
    first, second = handed.files(handed.session_with_files(2))[:2]
    return [second.but(token=first.ser.token)]


CORRUPTIONS: Final = (
    Corruption(
        "files-none",
        "A session with files says that there is no block of them.",
        _DESERIALIZE,
        Outcome.LOST,
        "a warning, and a session without files; all they held stays reserved",
        _session(lambda _, session: session.but(files=0)),
    ),
    Corruption(
        "files-count-more",
        "A session says that it has one file more than it has.",
        _DESERIALIZE,
        Outcome.EIO_AT_OPEN,
        f"files are counted; {_LATCHED}",
        _session(lambda _, session: session.but(count=session.ser.count + 1)),
    ),
    Corruption(
        "files-count-zero",
        "A session with a block of files says that it has none.",
        _DESERIALIZE,
        Outcome.EIO_AT_OPEN,
        f"files are counted; {_LATCHED}",
        _session(lambda _, session: session.but(count=0)),
    ),
    Corruption(
        "files-outside",
        "The files of a session are behind all memory.",
        _RESTORE,
        Outcome.FAULT,
        "the look for a loop reads the block without a check, at the first open",
        _session(lambda handed, session: session.but(files=handed.outside())),
    ),
    Corruption(
        "file-block-count-zero",
        "A block of files says that it has none.",
        _RESTORE,
        Outcome.EIO_AT_OPEN,
        f"a block has at least one entry; {_LATCHED}",
        _block(lambda _, block: block.but(count=0)),
    ),
    Corruption(
        "file-block-count-64",
        "A block of files says that it has one more than fit.",
        _RESTORE,
        Outcome.EIO_AT_OPEN,
        f"a block has at most 63 files; {_LATCHED}",
        _block(lambda _, block: block.but(count=64)),
    ),
    Corruption(
        "file-block-loop",
        "A block of files goes on with itself.",
        _RESTORE,
        Outcome.EIO_AT_OPEN,
        f"a fast and a slow pointer meet; {_LATCHED}",
        _block(lambda _, block: block.but(next=block.pa)),
    ),
    Corruption(
        "file-block-absent",
        "A block of files reads as zero.",
        _RESTORE,
        Outcome.EIO_AT_OPEN,
        f"a block has at least one entry; {_LATCHED}",
        _block(lambda _, block: (block.pa, bytes(PAGE_SIZE))),
    ),
    Corruption(
        "file-token-twice",
        "The second file of a session has the token of the first.",
        f"luo_retrieve_file(), {_DIR}/luo_file.c",
        Outcome.LOST,
        "the first of a token is found; the other is there until the session is finished",
        _same_token,
    ),
    Corruption(
        "file-compatible-unknown",
        "A file is of a kind that no handler knows, memfd-v1.",
        _DESERIALIZE,
        Outcome.EIO_AT_OPEN,
        f"ENOENT; {_LATCHED}",
        _file(lambda _, file: file.but(compatible=b"memfd-v1".ljust(48, b"\0"))),
    ),
    Corruption(
        "file-compatible-unterminated",
        "The kind of a file is 48 letters without an end.",
        _DESERIALIZE,
        Outcome.EIO_AT_OPEN,
        f"ENOENT: no handler is called so; {_LATCHED}",
        _file(lambda _, file: file.but(compatible=b"memfd-v2".ljust(48, b"2"))),
    ),
    Corruption(
        "file-data-outside",
        "The entry of a file's handler is behind all memory.",
        "memfd_luo_retrieve(), mm/memfd_luo.c",
        Outcome.FAULT,
        "it is read without a check when the file is retrieved or finished",
        _file(lambda handed, file: file.but(data=handed.outside())),
    ),
)
