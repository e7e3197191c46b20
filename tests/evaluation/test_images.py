import pytest
from builders import write_picture

from yolo_os.evaluation.images import images_by_stem, read_header


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
def test_size_is_read_of_each_kind(tmp_path, suffix):
    write_picture(tmp_path / f"a.{suffix}", (50, 20))
    assert read_header(tmp_path / f"a.{suffix}").size == (50, 20)


def test_a_turned_photo_has_the_size_that_is_shown(tmp_path):
    write_picture(tmp_path / "a.jpg", (50, 20), orientation=6)
    header = read_header(tmp_path / "a.jpg")
    assert (header.stored, header.size, header.orientation) == ((50, 20), (20, 50), 6)


def test_what_is_no_image_has_no_header(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    assert read_header(tmp_path / "a.jpg") is read_header(tmp_path / "b.jpg") is read_header(tmp_path / "c.jpg") is None


def test_images_are_found_below_folders_and_the_first_folder_wins(tmp_path):
    for name in ("one/a.jpg", "one/cam/b.PNG", "two/a.jpg", "two/c.bmp", "two/.d.jpg", "two/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = images_by_stem([tmp_path / "one", tmp_path / "two", tmp_path / "none"])
    paths = {"a": "one/a.jpg", "cam/b": "one/cam/b.PNG", "c": "two/c.bmp"}
    assert found == {stem: str(tmp_path / path) for stem, path in paths.items()}
