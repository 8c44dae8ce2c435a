"""The kernel parameters of an inventory: what the kernel would not take is refused."""

from __future__ import annotations

import pytest

from fleet.kernel_parameters import parse_cmdline
from fleet.units import Unfit

FINE = [
    ("", ""),
    ("  nosmt   quiet ", "nosmt quiet"),
    ("kho_scratch=256M,1G,512M", "kho_scratch=256M,1G,512M"),
    ("kho_scratch=0x10000000,1g,512m mitigations=off", None),
    ("kho_scratch=200%", None),
    ("kho=on liveupdate=1", None),
]


@pytest.mark.parametrize(("given", "kept"), FINE)
def test_parameters_pass_with_single_spaces(given: str, kept: str | None) -> None:
    assert parse_cmdline(given) == (given if kept is None else kept)


REFUSED = [
    ("kho_scratch=", "not understood"),
    ("kho_scratch=1G", "not understood"),
    ("kho_scratch=1G,2G", "not understood"),
    ("kho_scratch=1G,2G,3X", "not understood"),
    ("kho_scratch=50", "not understood"),
    ("kho_scratch=0%", "leaves an area empty"),
    ("kho_scratch=1G,0,1G", "leaves an area empty"),
    ("kho_scratch=-1%", "not understood"),
    ("kho=off", "switches live update off"),
    ("liveupdate=0", "switches live update off"),
    ("liveupdate=f", "switches live update off"),
    ("kho=of", "switches live update off"),
    ("kho-scratch=1G,0,1G", "leaves an area empty"),
    ("hugepagesz=1G hugepages=4", "a second time"),
    ("default-hugepagesz=1G", "a second time"),
    ('"hugepages=4"', "a second time"),
    ("a\0b", "cannot be printed"),
    (3, "is not text"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_a_parameter_that_would_go_wrong_is_refused(given: object, said: str) -> None:
    with pytest.raises(Unfit, match=said):
        parse_cmdline(given)
