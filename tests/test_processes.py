"""A program that hangs ends its test, whatever it has started."""

from __future__ import annotations

import sys

import psutil
import pytest
from processes import finished

STARTS_ANOTHER = """
import subprocess, sys
program = [sys.executable, "-c", "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"]
subprocess.run(program, start_new_session=True)  # as torchrun starts its processes
"""


def test_a_program_that_hangs_ends_with_all_that_it_started():
    with pytest.raises(pytest.fail.Exception, match=r"no end within 5 s") as said:
        finished([sys.executable, "-c", STARTS_ANOTHER], seconds=5)
    started = int(str(said.value).split("pid ")[-1].split()[0])
    assert not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE
