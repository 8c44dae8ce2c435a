"""The manifest for KubeRay: what it runs is there, and says what it means."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fleet.cli import app
from fleet.scenario import load_scenario

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy/kuberay/rayjob.yaml").read_text())
    (spec,) = [found["spec"] for found in documents if found["kind"] == "RayJob"]
    assert isinstance(spec, dict)
    return spec


def test_its_entry_point_is_a_command_that_there_is(job: dict[str, Any]) -> None:
    name, command, *words = shlex.split(job["entrypoint"])
    assert name == "lufleet"
    cli = typer.main.get_command(app)
    context = cli.commands[command].make_context(command, words)  # type: ignore[attr-defined]
    options = context.params
    assert options["address"] == "auto"
    scenario = load_scenario(ROOT / options["scenario"], options["set_"])
    assert len(scenario.hosts) == 20_000


def test_its_pods_have_the_ray_of_the_project(job: dict[str, Any]) -> None:
    assert job["rayClusterSpec"]["rayVersion"] == version("ray")


def test_its_image_is_pulled_alike_by_pods_that_no_manifest_describes(job: dict[str, Any]) -> None:
    """KubeRay makes the pod that submits the job, of the head's image and with no pull policy.

    Kubernetes pulls `latest`, the tag of an image without one, even where a node holds it.
    """
    cluster = job["rayClusterSpec"]
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    (image,) = images
    assert image.partition(":")[2] not in {"", "latest"}
    assert f"-t {image} " in (ROOT / "deploy/kuberay/Dockerfile").read_text()


def test_shards_go_to_workers_and_the_run_outlives_the_head(job: dict[str, Any]) -> None:
    cluster = job["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    pod = cluster["headGroupSpec"]["template"]["spec"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert f" --out {mount['mountPath']}/" in job["entrypoint"]
    (volume,) = pod["volumes"]
    assert volume["name"] == mount["name"]
    assert "persistentVolumeClaim" in volume
