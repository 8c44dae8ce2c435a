"""Where shards run."""

from __future__ import annotations

import socket
import sys
from subprocess import run as run_process

import pytest

from fleet.launcher import HostUnreachable, RayBackend


def test_the_local_backend_does_not_load_ray() -> None:
    code = "import sys, fleet.launcher as l; l.LocalBackend(); sys.exit('ray' in sys.modules)"
    assert run_process([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.ray
def test_an_address_on_which_nobody_listens_is_refused_at_once(no_ray: None) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(
            HostUnreachable, match=f"no Ray cluster listens at {address}: .*refused"
        ):
            RayBackend(address)
