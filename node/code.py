"""Which code simulates here.

The hosts of one fleet have to be simulated by the same code, or the figures of a run are those of
no version. On a cluster each node has lufleet of its own, and one of them may be of yesterday.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

__all__ = ["code_digest", "digest_of"]

_HERE: Final = Path(__file__).parent


@cache
def code_digest() -> str:
    """A digest of what makes a host's results: `node`, `kernelmodel` and the built-in costs."""
    return digest_of([_HERE, _HERE.parent / "kernelmodel"])


def digest_of(packages: Iterable[Path]) -> str:
    """A digest of the sources of packages, wherever they lie."""
    digest = blake2b(digest_size=16)
    for package in packages:
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.toml")]):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package).as_posix()} {len(content)} ".encode())
            digest.update(content)
    return digest.hexdigest()
