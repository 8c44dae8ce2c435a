"""Corruptions of what LUO hands over: its blob and the chain of sessions.

C: kernel/liveupdate/luo_core.c, luo_session.c, kho_block.c, 7.3.
"""

from __future__ import annotations

from typing import Final

from kernelmodel.corruptions.corruption import Corruption, Outcome

__all__ = ["CORRUPTIONS"]

_DIR: Final = "kernel/liveupdate"
_EARLY: Final = f"luo_early_startup(), {_DIR}/luo_core.c"
_RESTORE: Final = f"kho_block_set_restore(), {_DIR}/kho_block.c"
_SESSIONS: Final = f"luo_session_setup_incoming(), {_DIR}/luo_session.c"


CORRUPTIONS: Final = (
    Corruption(
        "luo-compatible",
        "LUO's blob is of another version, luo-v4.",
        _EARLY,
        Outcome.PANIC,
        lambda handed: [handed.luo().but(compatible=b"luo-v4\0\0")],
    ),
    Corruption(
        "luo-number-max",
        "The count of live updates is the largest there is; the next one is 0.",
        _EARLY,
        Outcome.ACCEPTED,
        lambda handed: [handed.luo().but(liveupdate_num=(1 << 64) - 1)],
    ),
    Corruption(
        "sessions-none",
        "LUO's blob says that there are no sessions.",
        _SESSIONS,
        Outcome.LOST,
        lambda handed: [handed.luo().but(sessions_pa=0)],
    ),
    Corruption(
        "session-block-count-zero",
        "The first block of sessions says that it has none.",
        _RESTORE,
        Outcome.PANIC,
        lambda handed: [handed.session_blocks()[0].but(count=0)],
    ),
    Corruption(
        "session-block-count-52",
        "The first block of sessions says that it has one more than fit.",
        _RESTORE,
        Outcome.PANIC,
        lambda handed: [handed.session_blocks()[0].but(count=52)],
    ),
    Corruption(
        "session-block-loop",
        "The last block of sessions goes on with the first.",
        _RESTORE,
        Outcome.PANIC,
        lambda handed: [handed.session_blocks()[-1].but(next=handed.session_blocks()[0].pa)],
    ),
)
