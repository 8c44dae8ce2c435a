"""Boots from many spoilt handovers, in processes of their own, and reports what no kernel would do.

    python -m tests.sim.spoil_many --images 100000 --seed 7

Images come in batches, each drawn from the seed and its own number alone and run in a fresh process
with little memory; a batch that says nothing for a while hangs. A finding names its image, and
`python -m tests.sim.spoilt_handovers IMAGE` plays that one again.

Images are drawn blindly. Guidance by the lines that an image reaches (sys.settrace) reached no more
lines with as many images, 3,528 against 3,604 with 300, and takes six times as long for each.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from select import select

from tests.sim.spoilt_handovers import KINDS, SpoiltImage, boot_and_use

ROOT = Path(__file__).parents[2]
BATCH = 500
SILENCE_S = 60
MEMORY_BYTES = 1 << 30
_CHANGES = (1, 1, 1, 2, 2, 3, 4, 6)


@dataclass
class Report:
    """What many images came to: findings as (image, what happened), outcomes with their number."""

    images: int = 0
    findings: list[tuple[str, str]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


def run_batch(seed: str, images: int) -> Iterator[tuple[SpoiltImage, str]]:
    """Image by image: first (image, ""), then what came of it: lines that begin with an empty one.

    A finding is a single line.
    """
    rng = random.Random(seed)
    for _ in range(images):
        nr = rng.choice(_CHANGES)
        image = SpoiltImage(rng.choice(KINDS), tuple(rng.getrandbits(32) for _ in range(nr)))
        yield image, ""
        try:
            said = boot_and_use(image)
        except Exception as error:  # noqa: BLE001 - whatever it is, that is the finding
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
            yield image, f"{type(error).__name__}: {error} [{where}]".replace("\n", " ")
        else:
            yield image, "\n".join(["", *said])


def run_many(seed: int, images: int, *, progress: bool = False) -> Report:
    """Batch by batch, each in a fresh process."""
    report = Report()
    for batch, first in enumerate(range(0, images, BATCH)):
        known = len(report.findings)
        _run_process(f"{seed}/{batch}", min(BATCH, images - first), report)
        if progress:
            print(f"{report.images} images, {len(report.findings)} findings", flush=True)
            print(told(report.findings[known:]), end="", flush=True)
    return report


def told(findings: list[tuple[str, str]]) -> str:
    return "".join(
        f"{image}: {what}\n  again: python -m tests.sim.spoilt_handovers {image}\n"
        for image, what in findings
    )


def _run_process(seed: str, images: int, report: Report) -> None:
    command = [sys.executable, "-m", "tests.sim.spoil_many", "--batch", seed]
    command += ["--images", str(images)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        image, ended = "none yet", False
        while not ended:
            if not select([process.stdout], [], [], SILENCE_S)[0]:
                process.kill()
                report.findings.append((image, f"silent for {SILENCE_S} s: a hang of the model's"))
                return
            kind, _, text = process.stdout.readline().decode().rstrip("\n").partition(" ")
            if kind == "image":
                image = text
                report.images += 1
            elif kind == "finding":
                report.findings.append((image, text))
            elif kind == "outcome":
                report.outcomes[text] += 1
            else:
                ended = True
                if kind != "end":
                    what = f"the process ended with {process.wait()}"
                    report.findings.append((image, what))


def _batch(seed: str, images: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for image, came_of_it in run_batch(seed, images):
        if not came_of_it:
            print("image", image, flush=True)
        elif came_of_it.startswith("\n"):
            print(*(f"outcome {line}" for line in set(came_of_it.split("\n")[1:])), sep="\n")
        else:
            print("finding", came_of_it, flush=True)
    print("end", flush=True)


def main() -> int:
    """Run and print; 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.batch:
        _batch(asked.batch, asked.images)
        return 0
    report = run_many(asked.seed, asked.images, progress=True)
    for outcome, times in report.outcomes.most_common():
        print(f"{times:8} {outcome}")
    print(told(report.findings), end="")
    return bool(report.findings)


if __name__ == "__main__":
    sys.exit(main())
