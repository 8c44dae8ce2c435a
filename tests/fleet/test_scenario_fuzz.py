"""No input makes the reader raise anything but `BadInput`, and what it accepts can be planned."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fleet.check import summary
from fleet.plan import make_plan
from fleet.scenario import BadInput, InputFault, read_scenario

GOOD = {
    "s.toml": """\
name = "good"
seed = 3
[fleet]
hosts = "hosts.csv"
vms = "vms.jsonl"
[fleet.columns.hosts]
memory_unit = "GiB"
domains = { feed = "zone" }
[[fleet.vm_class]]
name = "extra"
per_host = 1
memory = "64MiB"
backing = "memfd"
vcpus = 1
[update]
target = "7.3.4+hugetlb"
boot_timeout = "1h30min"
[rollout]
wave_size = "50%"
max_unavailable = { rack = 1 }
[rollout.gate]
max_failed_hosts = 1
max_downtime = "10min"
[[faults]]
kind = "slow-boot"
host = "h1"
factor = 4
[costs.kexec_file_load]
base_ns = 7
""",
    "hosts.csv": """\
host,rack,zone,numa_nodes,memory,cpus,release,hugepages_2M,hugepages_1G,cmdline
h1,r1,z1,2,8,16,7.3.2+hugetlb,512,1,
h2,r1,z1,2,4+4,16,7.3.2+hugetlb,512,1,"kho_scratch=64M,192M,64M"
""",
    "vms.jsonl": """\
{"vm": "v1", "host": "h1", "memory": "512MiB", "backing": "memfd", "vcpus": 1}
{"vm": "v2", "host": "h1", "memory": 1073741824, "backing": "hugetlb-2M", "vcpus": 2}
{"vm": "v3", "host": "h2", "memory": "1GiB", "page_size": "1GiB", "vcpus": 4}
""",
}

#: What an edit may put in: pieces that mean something, and noise.
PIECES = st.one_of(
    st.sampled_from(
        [
            *("", "0", "-1", "1e9", "nan", "-inf", "true", "''", '"', "'''", "[", "]", "{", "}"),
            *("\n", "\r", "\0", "#", ",", "=", ".", "+", "%", "🐧", "\ufeff", "\u2028", "\ud7ff"),
            *("9" * 40, "0x" + "f" * 5000, "1" * 5000, "[" * 900, "a." * 300, "1979-05-27"),
            *("999TiB", "1GB", "200%", "1h", "-5s", "hugetlb", "1GiB", "null", "[[fleet]]"),
            *("[fleet.columns.vms]\n", "hosts.csv", "vms.parquet", "../", "kho_scratch=1%"),
            *("domains = 3\n", "hugepages = { '2MiB' = true }\n", "profile = 's.toml'\n"),
        ]
    ),
    st.text(max_size=5),
)
EDITS = st.lists(
    st.tuples(st.sampled_from(sorted(GOOD)), st.floats(0, 1), st.integers(0, 12), PIECES),
    min_size=1,
    max_size=4,
)
KEYS = st.sampled_from(
    [
        *("seed", "fleet", "fleet.hosts", "rollout.wave_size", "faults.0.factor", "faults.0.vm"),
        *("faults.0", "faults", "costs", "costs.kexec_file_load", "update.target", "name", "a.b.c"),
        *("rollout.max_unavailable", "fleet.vm_class.0.memory", "faults.9.x", "..", '"', ""),
    ]
)
OVERRIDES = st.lists(st.tuples(KEYS, PIECES).map("=".join), max_size=2)


def read_and_plan(files: dict[str, bytes], overrides: list[str]) -> None:
    """Read a scenario; if it is accepted, all that follows must work too."""
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            Path(name, file).write_bytes(data)
        faults: tuple[InputFault, ...] = ()
        try:
            reading = read_scenario(Path(name, "s.toml"), overrides)
        except BadInput as bad:
            faults = bad.faults
        if not faults:
            assert make_plan(reading.scenario).target_release
            Console(quiet=True).print(summary(reading))
        for fault in faults:
            assert fault.file
            assert fault.what
            assert "\n" not in f"{fault.what}{fault.right}"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(edits=EDITS, overrides=OVERRIDES)
def test_a_damaged_scenario_is_refused_or_runs(
    edits: list[tuple[str, float, int, str]], overrides: list[str]
) -> None:
    files = dict(GOOD)
    for name, share, length, piece in edits:
        text = files[name]
        at = int(share * len(text))
        files[name] = text[:at] + piece + text[at + length :]
    read_and_plan({name: text.encode() for name, text in files.items()}, overrides)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(GOOD)), data=st.binary(max_size=60), at=st.integers(0, 400))
def test_bytes_that_are_no_text_are_refused_or_run(name: str, data: bytes, at: int) -> None:
    files = {name: text.encode() for name, text in GOOD.items()}
    files[name] = files[name][:at] + data + files[name][at:]
    read_and_plan(files, [])


def test_the_scenario_that_is_damaged_runs() -> None:
    with tempfile.TemporaryDirectory() as name:
        for file, text in GOOD.items():
            Path(name, file).write_text(text, "utf-8")
        assert len(read_scenario(Path(name, "s.toml")).scenario.vms) == 5
