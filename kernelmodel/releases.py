"""The kernel releases that a host can run, and the ABI strings by which they know each other.

Known from the sources: 6.16 carries `kho-v1` and no LUO; 6.19 `kho-v1`, `luo-v1`, `memfd-v1`;
7.2 and 7.3 `kho-v4`, `luo-v5`, `memfd-v2`. A name with `+hugetlb` is that release with a
proposal on top: preservation of hugetlb memfds with counts per page size in an FLB (`flb-counts`,
the RFC of December 2025), which no released kernel has; one with `+guest-memfd` has guest_memfd
besides. Users make releases of their own from these; a release is told apart by its name and knows
another's data by exact strings alone.

Simplification: whatever a release calls its formats, it writes those of 7.3. What differs between
`kho-v1` and `kho-v4` is never read, since kernels that disagree on the string stop there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal

__all__ = ["CATALOGUE", "LuoDesign", "Release", "catalogue_with", "known_releases"]

#: `sessions` is the LUO that was merged, `v4` the proposal of September 2025.
LuoDesign = Literal["sessions", "v4"]


@dataclass(frozen=True, slots=True)
class Release:
    """One kernel release, or a build of it.

    `kho`, `luo` and `memfd` are compatible strings, None where the part is absent, as `memfd` is
    from a kernel built without CONFIG_LIVEUPDATE_MEMFD. `luo_design` says which of the two LUOs
    it runs. `hugetlb` and `hugemfd` name the shared state and the files of a proposal to preserve
    hugetlb memfds, `hugetlb_design` how the proposal keeps that state; `kvm_vm`, `guest_memfd` and
    `guest_hugetlb` the files of proposals for VMs and their memory, on huge pages too.
    `kho_extends_scratch`: on a KHO boot scratch is extended, and huge pages of early boot stay out
    of it (new in 7.3). `relocatable`: it can be loaded by kexec (CONFIG_RELOCATABLE). `proposal`
    names what is carried beyond the release, None for the kernel as it was released; `based_on`
    the release that a user made this one from, "" for those of the catalogue.
    """

    name: str
    kho: str | None
    luo: str | None
    memfd: str | None
    hugetlb: str | None = None
    hugemfd: str | None = None
    hugetlb_design: str | None = None
    kvm_vm: str | None = None
    guest_memfd: str | None = None
    guest_hugetlb: str | None = None
    proposal: str | None = None
    luo_design: LuoDesign = "sessions"
    kho_extends_scratch: bool = True
    relocatable: bool = True
    based_on: str = ""

    @property
    def utsname(self) -> str:
        """What `uname -r` says, which is also what KHO's kexec-metadata records."""
        return self.name

    @property
    def remark(self) -> str:
        """How it differs from a kernel that was released, "" for one that was."""
        made = f"made by the user from {self.based_on}" if self.based_on else ""
        return ", ".join(filter(None, (made, self.proposal)))

    @property
    def title(self) -> str:
        """The name as results show it, with what makes it no released kernel spelt out."""
        return f"{self.name} ({self.remark})" if self.remark else self.name

    @lru_cache(maxsize=64)  # noqa: B019 - releases are few
    def pack(self) -> bytes:
        """What the kernel's image says of itself."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @staticmethod
    @lru_cache(maxsize=64)
    def unpack(packed: bytes) -> Release:
        """The release that was packed."""
        return Release(**json.loads(packed))


_RELEASED = (
    Release("6.16", "kho-v1", None, None, kho_extends_scratch=False),
    Release("6.19", "kho-v1", "luo-v1", "memfd-v1", kho_extends_scratch=False),
    Release("7.2.13", "kho-v4", "luo-v5", "memfd-v2", kho_extends_scratch=False),
    Release("7.3.2", "kho-v4", "luo-v5", "memfd-v2"),
    Release("7.3.4", "kho-v4", "luo-v5", "memfd-v2"),
)


def _with_hugetlb(release: Release) -> Release:
    return replace(
        release,
        name=f"{release.name}+hugetlb",
        hugetlb="hugetlb-v1",
        hugemfd="huge-memfd-v1",
        hugetlb_design="flb-counts",
        proposal="with the proposal flb-counts, RFC of Dec 2025",
    )


def _with_guest_memfd(release: Release) -> Release:
    return replace(
        _with_hugetlb(release),
        name=f"{release.name}+guest-memfd",
        kvm_vm="kvm-vm-v1",
        guest_memfd="guest-memfd-v1",
        guest_hugetlb="guest-hugetlb-v1",
        proposal="with the proposals flb-counts, RFC of Dec 2025, and guest_memfd, v4 of Jul 2026, "
        "and ours for guest_memfd on huge pages",
    )


_LUO_V4 = Release(
    "6.18+luo-v4",
    "kho-v1",
    "luo-v1",
    "memfd-v1",
    proposal="with the proposed LUO v4 of Sep 2025",
    luo_design="v4",
    kho_extends_scratch=False,
)


def _with_design(
    design: str, source: str, shared: str, luo_design: LuoDesign = "sessions"
) -> Release:
    """7.3.4 with another way of keeping hugetlb's shared state, and with guest_memfd."""
    v4 = luo_design == "v4"
    return replace(
        _with_guest_memfd(next(release for release in _RELEASED if release.name == "7.3.4")),
        name=f"7.3.4+luo-v4+{design}" if v4 else f"7.3.4+{design}",
        luo="luo-v1" if v4 else "luo-v5",
        luo_design=luo_design,
        hugetlb=shared,
        hugetlb_design=design,
        proposal=f"with the design {design} for hugetlb, {source}"
        + (", on the LUO v4 of Sep 2025" if v4 else "")
        + ", and guest_memfd",
    )


#: For each way of keeping hugetlb's shared state a release that carries it. All are the 7.3.4 that
#: has guest_memfd, with that one thing changed; those of October 2025 with the LUO of their time.
_WITH_DESIGNS = (
    _with_design("subsystem-prepare", "P. Yadav, 9 Oct 2025", "hugetlb-marks-v1", "v4"),
    _with_design("global-state", "P. Tatashin, 7 Oct 2025", "hugetlb-chain-v1", "v4"),
    _with_design("frozen-pool", "J. Gunthorpe, 10 Oct 2025", "hugetlb-pool-v1"),
    _with_design("files-then-subsystem", "P. Yadav, 14 Oct 2025", "hugetlb-pool-v1", "v4"),
    _with_design("handler-subsystem", "P. Yadav, 27 Oct 2025", "hugetlb-pool-v1", "v4"),
    _with_design("ours", "ours", "hugetlb-sizes-v1"),
)


#: The releases that everybody knows.
CATALOGUE: dict[str, Release] = {
    release.name: release
    for release in (
        *_RELEASED,
        _LUO_V4,
        *(_with_hugetlb(release) for release in _RELEASED if release.name.startswith("7.3")),
        *(_with_guest_memfd(release) for release in _RELEASED if release.name.startswith("7.3")),
        *_WITH_DESIGNS,
    )
}


def catalogue_with(own: Iterable[Release]) -> dict[str, Release]:
    """The catalogue and a user's own releases."""
    return CATALOGUE | {release.name: release for release in own}


def known_releases() -> str:
    """The names in the catalogue, for messages."""
    return ", ".join(CATALOGUE)
