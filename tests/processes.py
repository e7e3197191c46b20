"""Programs that tests start: each comes to an end, with all that it started itself."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

_MARK = "YOLO_OS_TEST_PROGRAM"  # in the environment of a program and of all that it starts


def finished(
    command: Sequence[str | Path],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float = 300,
) -> subprocess.CompletedProcess[str]:
    """What a program printed and how it ended; a test whose program hangs fails and shows what there was.

    `subprocess.run(timeout=...)` kills the program alone: processes that this has started, such as those of `torchrun`,
    each in a session of its own, keep its pipes open, and the test would wait for them without an end. Some have lost
    their parent by then, so they are known by their environment.
    """
    mark = uuid.uuid4().hex
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    marked = {**(os.environ if env is None else env), _MARK: mark}
    process = subprocess.Popen(command, cwd=cwd, env=marked, text=True, **pipes)
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # first, so that it starts nothing anew
        for _ in range(100):
            left = list(_of(mark))
            if not left:
                break
            for each in left:
                with suppress(psutil.Error):
                    each.kill()
            time.sleep(0.1)
        out, err = process.communicate(timeout=30)
        pytest.fail(f"no end within {seconds} s: {command}\n{out[-5000:]}\n{err[-5000:]}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _of(mark: str) -> Iterator[psutil.Process]:
    """The processes with a mark that still run."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == mark:
                yield process
