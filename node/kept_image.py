"""The image of a host's last jump, kept for whoever asked for it beforehand.

It is taken when everything is frozen and nothing has moved yet, so that it is what the next kernel
is given. Images are kept gzipped and in memory; one that would be too large leaves the content of
files out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kernelmodel.image.write import gzipped_image, handover_of
from kernelmodel.kernel import Kernel

__all__ = ["KEPT_BYTES_MAX", "KeptImage"]

#: Size, without gzip, up to which an image is kept.
KEPT_BYTES_MAX: Final = 256 << 20


class KeptImage:
    """At most one image, and whether the next jump's is wanted. Takes no virtual time.

    `data` is a gzipped `.kho` file, empty if there is none; `why` says then why not. `has_content`
    says whether the content of files is in it.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.data = b""
        self.has_content = True
        self.why = "no image was asked for before a jump"

    @contextmanager
    def asked_for(self, *, wanted: bool) -> Iterator[None]:
        """For as long as this lasts an image is kept, if it is wanted."""
        before = self.wanted
        self.wanted = self.wanted or wanted
        try:
            yield
        finally:
            self.wanted = before

    def take(self, kernel: Kernel) -> None:
        """`kernel` is about to jump."""
        if not self.wanted:
            return
        self.data = b""
        if not kernel.kho.fdt_pa:
            self.why = f"{kernel.release.name} handed nothing over: it has no KHO, or KHO is off"
            return
        handover = handover_of(kernel)
        self.has_content = handover.image_bytes() <= KEPT_BYTES_MAX
        size = handover.image_bytes(guests=self.has_content)
        if size > KEPT_BYTES_MAX:
            self.why = f"the image takes {size:,} bytes even without the content of files"
            return
        self.data = gzipped_image(handover, guests=self.has_content)
