"""The public names of `yolo_os.voc`."""

from __future__ import annotations

import sys

from processes import finished

import yolo_os.voc


def test_all_names_are_there():
    assert all(hasattr(yolo_os.voc, name) for name in yolo_os.voc.__all__)


def test_nothing_heavy_is_imported():
    program = "import sys, yolo_os.voc; print({'torch', 'ultralytics', 'matplotlib', 'cv2'} & set(sys.modules) or '')"
    done = finished([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
