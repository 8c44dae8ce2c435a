"""Corruptions of what LUO hands over: its blob, the chain of sessions, the table of FLBs.

C: kernel/liveupdate/luo_core.c, luo_session.c, luo_flb.c, kho_block.c, 7.3.
"""

from __future__ import annotations

import struct
from typing import Final

from kernelmodel.abi.kexec_handover import KHO_TREE_MAX_DEPTH, KhoBlockHeaderSer
from kernelmodel.corruptions.corruption import Corruption, Outcome
from kernelmodel.corruptions.handed_over import HandedOver, NotThere, overlaid
from kernelmodel.corruptions.reader import Write
from kernelmodel.memory import PAGE_SHIFT, PAGE_SIZE

__all__ = ["CORRUPTIONS"]

_DIR: Final = "kernel/liveupdate"
_EARLY: Final = f"luo_early_startup(), {_DIR}/luo_core.c"
_RESTORE: Final = f"kho_block_set_restore(), {_DIR}/kho_block.c"
_SETUP: Final = f"luo_session_setup_incoming(), {_DIR}/luo_session.c"
_DESERIALIZE: Final = f"luo_session_deserialize(), {_DIR}/luo_session.c"
_FLB: Final = f"luo_flb_retrieve_one(), {_DIR}/luo_flb.c"
_TOO_MANY_BLOCKS: Final = 10_001
_BLOCKS_PER_PAGE: Final = PAGE_SIZE // KhoBlockHeaderSer.SIZE


def _preserved_frames(handed: HandedOver, nr: int) -> tuple[list[int], list[Write]]:
    """Spare frames, and what preserves them, so that nobody takes them before they are read."""
    frames = handed.spare_frames(nr + KHO_TREE_MAX_DEPTH)[-nr:]  # the others may become nodes
    writes: list[Write] = []
    for pfn in frames:
        writes += overlaid(handed, writes).put_key(pfn, 0, present=True)
    return frames, writes


def _next_is_empty(handed: HandedOver) -> list[Write]:
    frames, writes = _preserved_frames(handed, 1)
    pa = frames[0] << PAGE_SHIFT
    return [*writes, (pa, bytes(PAGE_SIZE)), handed.session_blocks()[-1].but(next=pa)]


def _too_many_blocks(handed: HandedOver) -> list[Write]:
    """Blocks that are all header lie back to back: nothing says that one begins a page."""
    frames, writes = _preserved_frames(handed, -(-_TOO_MANY_BLOCKS // _BLOCKS_PER_PAGE))
    places = [
        (pfn << PAGE_SHIFT) + at
        for pfn in frames
        for at in range(0, PAGE_SIZE, KhoBlockHeaderSer.SIZE)
    ][:_TOO_MANY_BLOCKS]
    blocks = b"".join(struct.pack("<QQ", pa, 1) for pa in [*places[1:], 0])
    for index, pfn in enumerate(frames):
        page = blocks[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
        writes.append((pfn << PAGE_SHIFT, page))
    return [*writes, handed.luo().but(sessions_pa=places[0])]


def _one_session_less(handed: HandedOver) -> list[Write]:
    last = handed.session_blocks()[-1]
    if last.ser.count < 2:
        raise NotThere("a block of two sessions")
    return [last.but(count=last.ser.count - 1)]


def _same_name(handed: HandedOver) -> list[Write]:
    first, second = handed.sessions(2)[:2]
    return [second.but(name=first.ser.name)]


_BLOB: Final = (
    Corruption(
        "luo-compatible",
        "LUO's blob is of another version, luo-v4.",
        _EARLY,
        Outcome.PANIC,
        "LUO does not go on without knowing what was preserved",
        lambda handed: [handed.luo().but(compatible=b"luo-v4\0\0")],
    ),
    Corruption(
        "luo-page-absent",
        "The page of LUO's blob reads as zero.",
        _EARLY,
        Outcome.PANIC,
        "an empty version is another version",
        lambda handed: [(handed.luo().pa, bytes(PAGE_SIZE))],
    ),
    Corruption(
        "luo-number-max",
        "The count of live updates is the largest there is.",
        _EARLY,
        Outcome.ACCEPTED,
        "the next one is number 0",
        lambda handed: [handed.luo().but(liveupdate_num=(1 << 64) - 1)],
    ),
    Corruption(
        "sessions-none",
        "LUO's blob says that there are no sessions.",
        _SETUP,
        Outcome.LOST,
        "that is what a kernel without sessions says; all they held stays reserved",
        lambda handed: [handed.luo().but(sessions_pa=0 * handed.sessions()[0].pa)],
    ),
    Corruption(
        "sessions-outside",
        "LUO's blob puts the first block of sessions behind all memory.",
        _RESTORE,
        Outcome.FAULT,
        "the look for a loop reads it without a check",
        lambda handed: [handed.luo().but(sessions_pa=handed.outside())],
    ),
)

_SESSIONS: Final = (
    Corruption(
        "session-block-count-zero",
        "The first block of sessions says that it has none.",
        _RESTORE,
        Outcome.PANIC,
        "a block has at least one entry; LUO does not go on without its sessions",
        lambda handed: [handed.session_blocks()[0].but(count=0)],
    ),
    Corruption(
        "session-block-count-52",
        "The first block of sessions says that it has one more than fit.",
        _RESTORE,
        Outcome.PANIC,
        "a block has at most 51 sessions",
        lambda handed: [handed.session_blocks()[0].but(count=52)],
    ),
    Corruption(
        "session-block-count-max",
        "The first block of sessions says that it has as many as can be counted.",
        _RESTORE,
        Outcome.PANIC,
        "a block has at most 51 sessions",
        lambda handed: [handed.session_blocks()[0].but(count=(1 << 64) - 1)],
    ),
    Corruption(
        "session-block-count-less",
        "The last block of sessions says that it has one less than it has.",
        _RESTORE,
        Outcome.LOST,
        "any count up to 51 will do; the last session is not read",
        _one_session_less,
    ),
    Corruption(
        "session-block-short",
        "The first of two blocks of sessions says that it has one less than it has.",
        _RESTORE,
        Outcome.LOST,
        "a block that is not full may have another behind it; one session is not read",
        lambda handed: [handed.session_blocks(2)[0].but(count=50)],
    ),
    Corruption(
        "session-block-absent",
        "The first block of sessions reads as zero.",
        _RESTORE,
        Outcome.PANIC,
        "a block has at least one entry",
        lambda handed: [(handed.session_blocks()[0].pa, bytes(PAGE_SIZE))],
    ),
    Corruption(
        "session-block-loop",
        "The last block of sessions goes on with itself.",
        _RESTORE,
        Outcome.PANIC,
        "a fast and a slow pointer meet",
        lambda handed: [handed.session_blocks()[-1].but(next=handed.session_blocks()[-1].pa)],
    ),
    Corruption(
        "session-block-loop-of-two",
        "The last of two blocks of sessions goes on with the first.",
        _RESTORE,
        Outcome.PANIC,
        "a fast and a slow pointer meet",
        lambda handed: [handed.session_blocks(2)[-1].but(next=handed.session_blocks()[0].pa)],
    ),
    Corruption(
        "session-block-next-outside",
        "The last block of sessions goes on behind all memory.",
        _RESTORE,
        Outcome.FAULT,
        "the look for a loop reads it without a check",
        lambda handed: [handed.session_blocks()[-1].but(next=handed.outside())],
    ),
    Corruption(
        "session-block-next-empty",
        "The last block of sessions goes on with a page of zeroes.",
        _RESTORE,
        Outcome.PANIC,
        "a block has at least one entry",
        _next_is_empty,
    ),
    Corruption(
        "session-blocks-10001",
        "The sessions are a chain of 10,001 blocks.",
        _RESTORE,
        Outcome.PANIC,
        "at most 10,000 blocks are taken",
        _too_many_blocks,
    ),
    Corruption(
        "session-name-twice",
        "The second session has the name of the first.",
        _DESERIALIZE,
        Outcome.EIO_AT_OPEN,
        "EEXIST at the first open is latched",
        _same_name,
    ),
    Corruption(
        "session-name-unterminated",
        "The name of the first session is 64 letters without an end.",
        _DESERIALIZE,
        Outcome.LOST,
        "names are not looked at; whoever asks for the old one is told that there is none",
        lambda handed: [handed.sessions()[0].but(name=b"A" * 64)],
    ),
)

_FLBS: Final = (
    Corruption(
        "flbs-none",
        "LUO's blob says that there is no table of FLBs.",
        _FLB,
        Outcome.ACCEPTED,
        "ENODATA for whoever asks for an FLB; memfds have none of their own",
        lambda handed: [handed.luo().but(flbs_pa=0)],
    ),
    Corruption(
        "flbs-outside",
        "LUO's blob puts the table of FLBs behind all memory.",
        _FLB,
        Outcome.FAULT,
        "the first who asks for an FLB reads it without a check; the test FLBs do so at boot",
        lambda handed: [handed.luo().but(flbs_pa=handed.outside())],
    ),
    Corruption(
        "flb-count-zero",
        "The table of FLBs says that it has none.",
        _FLB,
        Outcome.ACCEPTED,
        "ENOENT for whoever asks for an FLB",
        lambda handed: [handed.flb_header().but(count=0)],
    ),
    Corruption(
        "flb-count-max",
        "The table of FLBs says that it has as many as can be counted.",
        _FLB,
        Outcome.ACCEPTED,
        "the search stops at the name it looks for, which is in the table",
        lambda handed: [handed.flb_header().but(count=len(handed.flbs()) and (1 << 64) - 1)],
    ),
    Corruption(
        "flb-name-unknown",
        "The first FLB has another name.",
        _FLB,
        Outcome.ACCEPTED,
        "ENOENT for whoever asks for it",
        lambda handed: [handed.flbs()[0].but(name=b"nobody".ljust(48, b"\0"))],
    ),
    Corruption(
        "flb-data-wrong",
        "The data of the first FLB are not what was stored.",
        "liveupdate_test_flb_retrieve(), lib/tests/liveupdate.c",
        Outcome.ACCEPTED,
        "EINVAL for whoever asks for it, for ever",
        lambda handed: [handed.flbs()[0].but(data=0)],
    ),
    Corruption(
        "flb-page-absent",
        "The table of FLBs reads as zero.",
        _FLB,
        Outcome.ACCEPTED,
        "a table without entries",
        lambda handed: [(handed.flb_header().pa, bytes(PAGE_SIZE))],
    ),
)

CORRUPTIONS: Final = (*_BLOB, *_SESSIONS, *_FLBS)
