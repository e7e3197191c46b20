"""A program that hangs ends its test, whatever it has started."""

from __future__ import annotations

import sys

import psutil
import pytest
from processes import finished

# A program that starts another, in a session of its own as torchrun starts its processes.
OTHER = """
import subprocess, sys
program = [sys.executable, "-c", "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"]
"""
WAITS = OTHER + "subprocess.run(program, start_new_session=True)"
ENDS = OTHER + "subprocess.Popen(program, start_new_session=True)"  # its pipe stays open
BETWEEN = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {ENDS!r}])\ntime.sleep(600)"


@pytest.mark.parametrize("program", [WAITS, ENDS, BETWEEN], ids=["waits for it", "has ended", "is not its parent"])
def test_a_program_that_hangs_ends_with_all_that_it_started(program):
    with pytest.raises(pytest.fail.Exception, match=r"no end within 5 s") as said:
        finished([sys.executable, "-c", program], seconds=5)
    started = int(str(said.value).split("pid ")[-1].split()[0])
    assert not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE
