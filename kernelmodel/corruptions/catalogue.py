"""All corruptions by label."""

from __future__ import annotations

from typing import Final

from kernelmodel.corruptions import kho, luo
from kernelmodel.corruptions.corruption import Corruption

__all__ = ["CORRUPTIONS"]

CORRUPTIONS: Final[dict[str, Corruption]] = {
    corruption.label: corruption for module in (kho, luo) for corruption in module.CORRUPTIONS
}
