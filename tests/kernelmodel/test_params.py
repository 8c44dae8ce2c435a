"""Spellings on the command line, as a real 7.3.4 kernel answered when it was asked for each."""

from __future__ import annotations

import pytest

from kernelmodel.params import KernelParams
from tests.kernelmodel.kernels import power_on

SCRATCH = "kho_scratch=16M,32M,8M"


@pytest.mark.parametrize(
    ("cmdline", "device"),
    [
        ("", False),
        ("liveupdate", False),
        ("liveupdate=", False),
        ("liveupdate=on", True),
        ("liveupdate=oN", True),
        ("liveupdate=ONWARD", True),
        ("liveupdate=yes", True),
        ("liveupdate=Y", True),
        ("liveupdate=true", True),
        ("liveupdate=1", True),
        ("liveupdate=12", True),
        ("liveupdate=enabled", True),
        ("liveupdate=E", True),
        ("liveupdate=on liveupdate=disabled", False),
        ("liveupdate=on kho=Disable", False),
        ('"liveupdate=on"', True),
        ("liveupdate=2", False),
        ("liveupdate=o", False),
        ("liveupdate=of", False),
        ("liveupdate=on liveupdate=no", False),
        ("liveupdate=no liveupdate=y", True),
        ("liveupdate=on liveupdate=x", True),  # what cannot be read changes nothing
        ("liveupdate=on liveupdate", True),
        ('liveupdate="on"', True),
        ("-- liveupdate=on", False),  # for the first process
        ("Liveupdate=on", False),
        ("liveupdate=on kho=n", False),
        ("liveupdate=on kho=0ff", False),
        ("liveupdate=on kho=bogus", True),
        ("liveupdate=on kho=off kho=yes", True),
    ],
)
def test_live_update_and_kho_are_booleans_as_the_kernel_reads_them(
    cmdline: str, device: bool
) -> None:
    kernel = power_on(f"{cmdline} {SCRATCH}" if "--" not in cmdline else f"{SCRATCH} {cmdline}")
    assert kernel.luo.enabled is device


def test_quotes_keep_blanks_together_and_dashes_are_underscores() -> None:
    params = KernelParams('a="b c" kho-scratch=1M,2M,3M last')
    assert params.get("a") == "b c"
    assert params.get("kho_scratch") == "1M,2M,3M"
    assert params.get("last") == ""
    assert params.get("c") is None
