"""Where shards run."""

from __future__ import annotations

import sys
from subprocess import run as run_process


def test_the_local_backend_does_not_load_ray() -> None:
    code = "import sys, fleet.launcher as l; l.LocalBackend(); sys.exit('ray' in sys.modules)"
    assert run_process([sys.executable, "-c", code], check=False).returncode == 0
