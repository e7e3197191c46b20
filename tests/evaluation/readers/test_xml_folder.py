import os
from pathlib import Path

import numpy as np
from builders import xml

import yolo_os.evaluation.readers.xml_folder as module
from yolo_os.evaluation.readers.cache import CACHE_FOLDER
from yolo_os.voc import read_devkit


def test_cache_is_used_until_something_changes(kit, monkeypatch):
    first = read_devkit(kit)
    calls = []
    parse = module.parse
    monkeypatch.setattr(module, "parse", lambda *args: calls.append(args) or parse(*args))
    again = read_devkit(kit)
    assert calls == []
    for name in ("image", "class_index", "box", "difficult", "truncated", "size"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    file = kit / "VOC2007/Annotations/a.xml"
    stat = file.stat()
    file.write_text(file.read_text().replace("<xmin>10<", "<xmin>11<"))  # same size, another time
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert read_devkit(kit).box[0, 0] == 11
    (kit / "VOC2007/Annotations/new.xml").write_text(xml([("cat", (10, 20, 30, 40))]))
    read_devkit(kit)
    assert len(calls) == 2
    (kit / "VOC2007" / CACHE_FOLDER / "annotations.json").write_bytes(b"damaged")
    assert read_devkit(kit).box[0, 0] == 11


def test_cache_goes_to_the_users_folder_where_the_devkit_is_read_only(kit, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    root = kit / "VOC2007"
    root.chmod(0o555)
    try:
        read_devkit(kit)
    finally:
        root.chmod(0o755)
    assert not (root / CACHE_FOLDER).exists()
    assert len(list(Path(tmp_path / "mine").rglob("annotations.json"))) == 1
