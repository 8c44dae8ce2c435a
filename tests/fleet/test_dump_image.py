"""`lufleet run --dump-image`, on real modelled hosts in this process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import fleet.run
import node.kept_image
from fleet.cli import app
from kernelmodel.image.load import load_image
from kernelmodel.inspect.handover import inspect_image
from tests.fleet.toys import ToyBackend

SCENARIO = """\
name = "two hosts"
seed = 7

[[fleet.host_class]]
name = "std"
count = 2
racks = 2
memory = "8GiB"
cpus = 4
release = "7.3.2+hugetlb"
hugepages = { "2MiB" = 512 }

[[fleet.vm_class]]
name = "web"
per_host = 2
memory = "256MiB"
backing = "hugetlb-2M"
vcpus = 2

[update]
target = "7.3.4+hugetlb"

[rollout]
wave_size = 1

[rollout.gate]
max_failed_hosts = 1

[[faults]]
host = "std-2"
kind = "kexec-load-fails"
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(node.kept_image, "KEPT_BYTES_MAX", 1 << 20)
    Path("s.toml").write_text(SCENARIO)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["run", "s.toml", "--backend", "local", "--out", "o", *words])


def digest() -> str:
    text: str = json.loads(Path("o/result.json").read_text())["digest"]
    return text


def test_the_first_hosts_image_is_written_and_changes_nothing() -> None:
    assert run().exit_code == 0
    undisturbed = digest()
    result = run("--dump-image", "first=d/one.kho", "--dump-image", "std-1=one.kho.gz")
    assert result.exit_code == 0, result.stderr
    assert digest() == undisturbed
    said = "wrote d/one.kho (what std-1 handed over, guests' memory left out)"
    assert said in result.stdout
    assert Path("d/one.kho").read_bytes().startswith(b"KHOIMG1\0")
    images = [inspect_image(load_image(Path(name))) for name in ("d/one.kho", "one.kho.gz")]
    assert images[0] == images[1]
    names = [session["name"] for session in images[0]["sessions"]]
    assert len(names) == 2
    assert images[0]["hugetlb"] == {"9": 256}
    assert images[0]["kexec_metadata"] == [1, "7.3.2+hugetlb", 1]


def test_a_host_that_never_jumps_has_none() -> None:
    result = run("--dump-image", "std-2=two.kho")
    assert result.exit_code == 0, result.stderr
    assert "no image of std-2: it never jumped (kexec-load-failed: EADDRNOTAVAIL" in result.stdout
    assert not Path("two.kho").exists()


def test_a_host_that_a_halted_rollout_did_not_come_to_has_none() -> None:
    gate = ("--set", "rollout.gate.max_downtime=1ms")
    result = run("--dump-image", "std-2=two.kho", *gate)
    assert result.exit_code == 3, result.stderr
    assert "no image of std-2: the rollout ended before it was updated (std-1-web" in result.stdout
    assert not Path("two.kho").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("std-9=x", "--dump-image std-9=x: there is no host 'std-9' that is updated, name a host"),
        ("std-1", "'std-1' is not HOST=FILE"),
        ("=x", "'=x' is not HOST=FILE"),
        ("std-1=.", "--dump-image std-1=.: cannot be written: Is a directory"),
    ],
)
def test_wrong_dumps_end_with_2_and_nothing_is_started(given: str, said: str) -> None:
    result = run("--dump-image", given)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not Path("o").exists()


def test_an_interrupted_run_remembers_what_to_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        toys = ToyBackend(1, asyncio.CancelledError())
        patch.setattr(fleet.run, "make_backend", lambda _: toys)
        result = run("--dump-image", "first=one.kho")
    assert result.exit_code == 130
    assert "--dump-image first=one.kho --resume" in result.stderr.splitlines()[-1]


def test_after_a_resume_the_image_is_there_all_the_same() -> None:
    assert run("--dump-image", "first=one.kho").exit_code == 0
    image = Path("one.kho").read_bytes()
    Path("one.kho").unlink()
    Path("o/result.json").unlink()
    assert run("--dump-image", "first=one.kho", "--resume").exit_code == 0
    assert Path("one.kho").read_bytes() == image


def test_an_image_that_cannot_be_written_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        result = run("--dump-image", "first=one.kho")
    assert result.exit_code == 2
    assert "one.kho cannot be written: [Errno 28] No space left on device" in result.stderr
    assert run("--dump-image", "first=one.kho", "--resume").exit_code == 0
    assert Path("one.kho").stat().st_size > 0
