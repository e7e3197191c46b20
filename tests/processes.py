"""Programs that tests start: each comes to an end, with all that it started itself."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest


def finished(
    command: Sequence[str | Path],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float = 300,
) -> subprocess.CompletedProcess[str]:
    """What a program printed and how it ended; a test whose program hangs fails and shows what there was.

    `subprocess.run(timeout=...)` kills the program alone: processes that this has started, such as those of `torchrun`,
    each in a session of its own, keep its pipes open, and the test would wait for them without an end.
    """
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=cwd, env=env, text=True, **pipes)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        for started in [*psutil.Process(process.pid).children(recursive=True), process]:
            started.kill()
        out, err = process.communicate()
        pytest.fail(f"no end within {seconds} s: {command}\n{out[-5000:]}\n{err[-5000:]}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)
