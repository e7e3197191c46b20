"""The public names of `yolo_os.voc`."""

from __future__ import annotations

import subprocess
import sys

import yolo_os.voc


def test_all_names_are_there():
    assert all(hasattr(yolo_os.voc, name) for name in yolo_os.voc.__all__)


def test_nothing_heavy_is_imported():
    program = "import sys, yolo_os.voc; print({'torch', 'ultralytics', 'matplotlib', 'cv2'} & set(sys.modules) or '')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
