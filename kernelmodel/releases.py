"""The kernel releases that a host can run, and the ABI strings by which they know each other.

Known from the sources: 6.16 carries `kho-v1` and no LUO; 6.19 `kho-v1`, `luo-v1`, `memfd-v1`;
7.2 and 7.3 `kho-v4`, `luo-v5`, `memfd-v2`. A name with `+hugetlb` is that release with a
proposal on top: preservation of hugetlb memfds with counts per page size in an FLB (`flb-counts`,
the RFC of December 2025), which no released kernel has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["CATALOGUE", "Release", "known_releases"]


@dataclass(frozen=True, slots=True)
class Release:
    """One kernel release.

    `kho`, `luo` and `memfd` are compatible strings, None where the release lacks the part.
    `proposal` names what is carried beyond the release, None for the kernel as it was released.
    """

    name: str
    kho: str | None
    luo: str | None
    memfd: str | None
    hugetlb: str | None = None
    hugemfd: str | None = None
    proposal: str | None = None

    @property
    def utsname(self) -> str:
        """What `uname -r` says, which is also what KHO's kexec-metadata records."""
        return self.name

    @property
    def title(self) -> str:
        """The name as results show it, the proposal spelt out."""
        return f"{self.name} ({self.proposal})" if self.proposal else self.name


_RELEASED = (
    Release("6.16", "kho-v1", None, None),
    Release("6.19", "kho-v1", "luo-v1", "memfd-v1"),
    Release("7.2.13", "kho-v4", "luo-v5", "memfd-v2"),
    Release("7.3.2", "kho-v4", "luo-v5", "memfd-v2"),
    Release("7.3.4", "kho-v4", "luo-v5", "memfd-v2"),
)


def _with_hugetlb(release: Release) -> Release:
    return replace(
        release,
        name=f"{release.name}+hugetlb",
        hugetlb="hugetlb-v1",
        hugemfd="huge-memfd-v1",
        proposal="with the proposal flb-counts, RFC of Dec 2025",
    )


#: Every release that a scenario may name.
CATALOGUE: dict[str, Release] = {
    release.name: release
    for release in (
        *_RELEASED,
        *(_with_hugetlb(release) for release in _RELEASED if release.name.startswith("7.3")),
    )
}


def known_releases() -> str:
    """The names in the catalogue, for messages."""
    return ", ".join(CATALOGUE)
