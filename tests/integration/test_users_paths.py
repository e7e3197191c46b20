import logging

from builders import write_devkit
from ultralytics.utils import LOGGER

from yolo_os.integration.data import devkit_dataset
from yolo_os.integration.users_paths import users_path


def test_what_lies_in_a_cache_is_called_as_the_user_knows_it(tmp_path, caplog):
    kit = write_devkit(tmp_path / "kit", {"a": [("cat", (1, 1, 9, 9))]}, {"train": "a"})
    made = devkit_dataset(kit, ["cat"]).parent
    image = made / "images/train2007/a.jpg"
    assert users_path(image) == str(kit / "VOC2007/JPEGImages/a.jpg")
    assert users_path(made / "labels/train2007.cache") == str(kit)
    assert users_path("elsewhere/a.jpg") == "elsewhere/a.jpg"
    LOGGER.warning(f"no labels in {made}/labels/train2007.cache, and {image}: damaged, 100%")
    LOGGER.warning("plain")
    first, second = caplog.messages[-2:]
    assert first.endswith(f"no labels in {kit}, and {kit}/VOC2007/JPEGImages/a.jpg: damaged, 100%")
    assert second.endswith("plain")
    assert caplog.records[-1].levelno == logging.WARNING
