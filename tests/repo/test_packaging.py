"""The wheel holds everything that runs, and nothing that does not belong in site-packages."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("lufleet-*.whl")
    return zipfile.ZipFile(path)


def committed(package: Path) -> set[str]:
    return {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_of_the_four_packages_is_in_it(wheel: zipfile.ZipFile) -> None:
    packages = [ROOT / "fleet", ROOT / "node", ROOT / "kernelmodel", ROOT / "proto" / "lufleet"]
    wanted = set().union(*map(committed, packages))
    assert "kernelmodel/sim/profiles/default.toml" in wanted
    assert "lufleet/v1/host_pb2.py" in wanted
    assert wanted <= set(wheel.namelist())


def test_nothing_else_is(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"fleet", "node", "kernelmodel", "lufleet", "lufleet-0.1.0.dist-info"}


def test_the_command_and_the_licence_are_declared(wheel: zipfile.ZipFile) -> None:
    info = "lufleet-0.1.0.dist-info"
    assert "lufleet = fleet.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "License-Expression: Apache-2.0" in wheel.read(f"{info}/METADATA").decode()
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
