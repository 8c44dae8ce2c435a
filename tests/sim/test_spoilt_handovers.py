"""Whatever is handed over, the modelled kernel ends as a kernel could.

`LUFLEET_IMAGES=100000 pytest tests/sim/test_spoilt_handovers.py` boots from so many spoilt
handovers, `LUFLEET_IMAGES_SEED` draws others; the time limit of a test grows with them.
`tests/sim/spoil_many.py` does the same from the command line.
"""

from __future__ import annotations

import os

import pytest

from tests.sim.spoil_many import run_batch, run_many, told
from tests.sim.spoilt_handovers import SpoiltImage, boot_and_use

IMAGES = int(os.environ.get("LUFLEET_IMAGES", "500"))
SEED = int(os.environ.get("LUFLEET_IMAGES_SEED", "1"))


@pytest.mark.timeout(120 + IMAGES // 5)
def test_no_spoilt_handover_brings_the_model_down() -> None:
    report = run_many(SEED, IMAGES)
    assert not report.findings, f"seed {SEED}\n{told(report.findings)}"
    assert report.images == IMAGES
    ends = {outcome.split(":")[0] for outcome in report.outcomes}
    assert ends >= {"panic", "open EIO", "EINVAL", "again"}  # not all of one kind


#: Images that once found something. (What a number changes depends on `spoiling.py`.)
FOUND = (
    "plain:1378138753",  # two blocks on one frame, neither restored
    "plain:2800969192",  # scratch that begins within a page
    "plain:2093204994",  # a table that cannot be restored whole
    "huge:2715420061",
    "huge:661289479",  # half of a file on huge pages
    "huge:2455748173.1782641351",  # a folio at an index that no file has
    "plain:1101772040.3917148917.3396004190.629953763",  # scratch areas that overlap
    "long:3104819078.1595810788",  # a block that nobody preserved becomes a table of the new tree
)


@pytest.mark.parametrize("image", FOUND)
def test_what_was_found_stays_found(image: str) -> None:
    assert boot_and_use(SpoiltImage.parse(image))


def test_a_seed_draws_the_same_images_with_the_same_end() -> None:
    one, other = (list(run_batch("a seed", 20)) for _ in range(2))
    assert one == other
    assert len({str(image) for image, _ in one}) == 20
    assert all(str(SpoiltImage.parse(str(image))) == str(image) for image, _ in one)
