"""``python -m kernelmodel.sim [PROFILE.toml]`` prints the cost rows in force as a table."""

from __future__ import annotations

import sys
from pathlib import Path

from kernelmodel.sim.cost import CostModel, CostProfileError


def main(arguments: list[str]) -> int:
    """Print the table; 2 if the profile cannot be used."""
    if len(arguments) > 1:
        sys.stderr.write("usage: python -m kernelmodel.sim [PROFILE.toml]\n")
        return 2
    try:
        profile = Path(arguments[0]).read_text("utf-8") if arguments else ""
        sys.stdout.write(CostModel.load(profile).markdown())
    except CostProfileError as error:
        sys.stderr.writelines(f"{arguments[0]}: {fault}\n" for fault in error.faults)
        return 2
    except (OSError, UnicodeDecodeError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
