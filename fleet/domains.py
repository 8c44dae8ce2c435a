"""Failure domains: how many hosts of each may be unavailable at once, who waits for room.

A domain is a (key, value) pair such as ("rack", "r2"); a host is in one per limited key. A host
that does not fit is parked at the first of its domains that is full, and looked at again when
that domain has room: a host's end costs as much as it lets start, however many wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Domain", "Domains"]

Domain = tuple[str, str]


@dataclass(slots=True)
class Domains:
    """The books over every domain of a fleet. `limits` is per key."""

    limits: Mapping[str, int]
    unavailable: dict[Domain, int] = field(default_factory=dict)
    _parked: dict[Domain, deque[str]] = field(default_factory=dict)
    _freed: list[Domain] = field(default_factory=list)

    def is_full(self, domain: Domain) -> bool:
        """Whether no further host of this domain may become unavailable."""
        return self.unavailable.get(domain, 0) >= self.limits[domain[0]]

    def take(self, host: str, domains: tuple[Domain, ...]) -> bool:
        """Make the host unavailable in all its domains, or park it at the first full one."""
        for domain in domains:
            if self.is_full(domain):
                self._parked.setdefault(domain, deque()).append(host)
                return False
        for domain in domains:
            self.unavailable[domain] = self.unavailable.get(domain, 0) + 1
        return True

    def give_back(self, domains: tuple[Domain, ...]) -> None:
        """A host of these domains is available again."""
        for domain in domains:
            self.unavailable[domain] -= 1
            self._freed.append(domain)

    def take_parked(self, domains_of: Mapping[str, tuple[Domain, ...]]) -> list[str]:
        """Take whatever fits of the hosts that wait where room was given back since."""
        taken = []
        for domain in self._freed:
            parked = self._parked.get(domain)
            while parked and not self.is_full(domain):
                host = parked.popleft()
                if self.take(host, domains_of[host]):
                    taken.append(host)
        self._freed.clear()
        return taken

    def first_full_with_waiters(self) -> tuple[str, str, int]:
        """Key, value and unavailable hosts of a domain that somebody waits for."""
        key, value = next(domain for domain, parked in self._parked.items() if parked)
        return key, value, self.unavailable[key, value]
