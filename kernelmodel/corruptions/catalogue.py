"""All corruptions by label."""

from __future__ import annotations

from typing import Final

from kernelmodel.corruptions import files, kho, luo, memfd, tree
from kernelmodel.corruptions.corruption import Corruption

__all__ = ["CORRUPTIONS"]

CORRUPTIONS: Final[dict[str, Corruption]] = {
    corruption.label: corruption
    for module in (kho, tree, luo, files, memfd)
    for corruption in module.CORRUPTIONS
}
