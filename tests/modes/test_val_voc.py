import json
import shutil
import sys
from pathlib import Path

import pytest
from builders import comp4, write_devkit
from processes import finished

from yolo_os.cli import main


@pytest.fixture
def kit(tmp_path):
    images = {
        "a": [("cat", (10, 20, 30, 40)), ("dog", (50, 50, 60, 60), {"difficult": "1"})],
        "b": [("dog", (1, 1, 100, 80)), ("cat", (5, 5, 50, 50))],
        "c": [("cat", (40, 40, 70, 70))],
    }
    return write_devkit(tmp_path / "kit", images, {"test": "abc", "train": "a", "val": "b"})


@pytest.fixture
def good(tmp_path):
    cats = ["a 0.9 10 20 30 40", "b 0.8 5 5 50 50", "c 0.7 40 40 70 70"]
    return comp4(tmp_path / "good", comp4_det_test_cat=cats, comp4_det_test_dog=["b 0.9 1 1 100 80"])


@pytest.fixture
def poor(tmp_path):
    return comp4(tmp_path / "poor", comp4_det_test_cat=["a 0.9 10 20 30 40"], comp4_det_test_dog=["a 0.5 1 1 9 9"])


def val(kit, detections, *words):
    return main(["val", f"detections={detections}", f"devkit={kit}", "classes=cat,dog", *words])


def figures_of(name):
    """What a result file says but for where it comes from."""
    content = json.loads(Path(name).read_text())
    assert content.pop("made")["command"].startswith("yolo-os val ")
    return content


def test_val_prints_writes_and_says_how_it_differs(kit, good, in_tmp, capsys):
    assert val(kit, good, "json=out.json") == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith(("cat", "mean"))] == [
        ["cat", "1.0000", "1.0000", "3"],
        ["mean", "1.0000", "1.0000", "4"],
    ]
    assert "yolo val's mAP50 of the same detections is another number" in out
    assert "COCO's numbers, without difficult objects: AP 1.0000" in out
    figures = json.loads((in_tmp / "out.json").read_text())
    assert (figures["map"], figures["map07"]) == (1.0, 1.0)
    assert figures["classes"]["dog"] == {"ap": 1.0, "ap07": 1.0, "npos": 1}
    assert json.loads((in_tmp / "runs/val/exp/voc.json").read_text()) == figures
    assert (in_tmp / "runs/val/exp/pr_curves.png").stat().st_size > 1000
    assert not (in_tmp / "runs/val/exp/comp4").exists()  # they came as such


def test_val_of_coco_results_leaves_comp4_files(kit, good, in_tmp, capsys):
    entries = [{"image_id": "b", "category_id": 2, "bbox": [0, 0, 100, 80], "score": 0.9}]
    (in_tmp / "r.json").write_text(json.dumps(entries))
    assert val(kit, "r.json", "plots=False", "coco=False") == 0
    captured = capsys.readouterr()
    assert "category_id is counted from 1: 1 is cat" in captured.err
    assert "skipped" in captured.out
    written = in_tmp / "runs/val/exp/comp4/comp4_det_test_dog.txt"
    assert written.read_text() == "b 0.9 1.0 1.0 100.0 80.0\n"
    assert val(kit, written.parent, "plots=False", "json=again.json") == 0
    assert json.loads((in_tmp / "again.json").read_text())["classes"]["dog"]["ap"] == 1.0


@pytest.mark.parametrize("word", ["seed=-1", "pixel_offset=7", "first_category=7", "classes=nope.txt"])
def test_values_without_a_sense_are_refused(kit, good, in_tmp, capsys, word):
    words = ["val", f"detections={good}", f"devkit={kit}", "classes=cat,dog", "bootstrap=10", word]
    words = [each for each in words if not (word.startswith("classes") and each == "classes=cat,dog")]
    assert main(words) == 2
    assert word in capsys.readouterr().err
    assert not list(in_tmp.glob("runs"))


def test_of_one_image_there_are_figures_without_intervals(kit, good, poor, in_tmp, capsys):
    (kit / "VOC2007/ImageSets/Main/test.txt").write_text("a\n")
    words = ("strict=False", "plots=False")
    assert val(kit, f"{poor},{good}", *words, "json=out.json") == 0
    assert "of a single image none can be given" in capsys.readouterr().err
    figures = json.loads((in_tmp / "out.json").read_text())
    assert (figures["detectors"]["good"]["map"], figures["gains"]) == (1.0, {})
    assert val(kit, f"{poor},{good}", *words, "bootstrap=50") == 2
    assert "at least 2 are needed" in capsys.readouterr().err


def test_val_with_error_bars(kit, good, in_tmp, capsys):
    assert val(kit, good, "plots=False", "bootstrap=50", "json=out.json") == 0
    assert "95% intervals from 50 bootstrap replicates of the 3 images" in capsys.readouterr().out
    bars = json.loads((in_tmp / "out.json").read_text())["bootstrap"]
    assert bars["map"]["value"] == 1.0
    assert set(bars["ap"]) == {"cat", "dog"}


def test_val_compares(kit, good, poor, in_tmp, capsys):
    assert val(kit, f"{poor},{good}", "bootstrap=60", "json=out.json") == 0
    out = capsys.readouterr().out
    assert "gain of good over poor on the same 3 images" in out
    figures = json.loads((in_tmp / "out.json").read_text())
    maps = {name: figures["detectors"][name]["map"] for name in ("poor", "good")}
    assert maps == {"poor": pytest.approx(1 / 6), "good": 1.0}
    gain = figures["gains"]["good"]
    assert gain["over"] == "poor"
    assert gain["map"]["value"] == pytest.approx(5 / 6)
    assert gain["ap"]["dog"]["value"] == 1.0
    low, high = (gain["ap"]["dog"][edge] for edge in ("low", "high"))
    (row,) = (line for line in out.splitlines() if line.startswith("dog"))
    assert row.split()[3:] == ["+1.0000", f"[{low:+.4f},", f"{high:+.4f}]", "1*"]
    assert "classes of 10 boxes or more" not in out  # of which there is none
    assert (in_tmp / "runs/val/exp/good_gain.png").stat().st_size > 1000
    assert (in_tmp / "runs/val/exp/poor_pr_curves.png").exists()
    assert (in_tmp / "runs/val/exp/pr_curves.png").stat().st_size > 1000
    assert (in_tmp / "runs/val/exp/good_images.png").stat().st_size > 1000


def test_val_goes_on_without_what_is_broken_and_its_exit_code_says_so(kit, good, in_tmp, capsys):
    (kit / "VOC2007/Annotations/c.xml").write_text("<annotation>")
    assert val(kit, good, "plots=False") == 3
    captured = capsys.readouterr()
    assert "c.xml:1: broken XML" in captured.err
    assert "1 of images whose annotations could not be read left out" in captured.out
    assert "c.xml:1: broken XML" in (in_tmp / "runs/val/exp/problems.txt").read_text()


def test_val_through_a_data_yaml(kit, good, in_tmp, capsys):
    assert main(["voc", f"devkit={kit}", "out=ds", "classes=cat,dog"]) == 0
    assert main(["val", f"detections={good}", "data=ds/data.yaml", "plots=False"]) == 0
    assert "test of VOC2007: 3 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["devkit={kit}"], "give either model=... or detections=..."),
        (["detections={good}", "model=a.pt", "devkit={kit}"], "give either model=... or detections=..."),
        (["detections={good}"], "give the ground truth once"),
        (["detections={good}", "devkit={kit}", "data={kit}"], "give the ground truth once"),
        (["detections={good},{good}", "devkit={kit}"], "names one twice"),
        (["detections={good}", "devkit={kit}", "split=minival"], "no image set 'minival'"),
        (["detections={good}", "devkit={kit}", "iou=2"], "iou_threshold=2.0"),
        (["detections={good}", "devkit={kit}", "recall_points=x"], "use one of numpy, matlab"),
        (["detections={good}", "devkit={kit}", "json=no/such/folder.json"], "does not exist"),
        (["detections={good}", "devkit={kit}", "classes=cat"], "class 'dog' is not among cat"),
        (["detections={good}", "data=none.yaml"], "no such file"),
    ],
)
def test_val_refuses_in_one_line(kit, good, in_tmp, capsys, words, says):
    assert main(["val", *(word.format(kit=kit, good=good) for word in words)]) == 2
    assert says in capsys.readouterr().err
    assert not list(in_tmp.glob("runs/val/*"))


def test_files_are_evaluated_without_torch_ultralytics_or_matplotlib(kit, good, in_tmp):
    program = (
        "import sys; from yolo_os.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'ultralytics', 'matplotlib', 'cv2'} & set(sys.modules); sys.exit(code or str(heavy or ''))"
    )
    for name in ("train", "val"):  # which hold images of test
        (kit / f"VOC2007/ImageSets/Main/{name}.txt").unlink()
    words = ["val", f"detections={good}", f"devkit={kit}", "classes=cat,dog", "plots=False", "coco=False"]
    done = finished([sys.executable, "-c", program, *words])
    assert done.stderr.strip() == ""
    assert "mean" in done.stdout


def test_voc_reports_and_its_exit_code_says_when_something_was_lost(kit, in_tmp, capsys):
    assert main(["voc", f"devkit={kit}", "out=ds", "classes=cat,dog"]) == 0
    out = capsys.readouterr().out
    assert "train       1 images       1 boxes (1 difficult objects left out)" in out
    assert "use data=ds/data.yaml" in out
    for index in range(12):
        (kit / f"VOC2007/Annotations/x{index}.xml").write_text("<annotation>")
    (kit / "VOC2007/ImageSets/Main/train.txt").write_text("a\n" + "".join(f"x{index}\n" for index in range(12)))
    assert main(["voc", f"devkit={kit}", "out=ds"]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("broken XML") == 10
    assert "note: out=ds was there already and has been replaced" in captured.err
    assert "... and 2 more (all of them in ds/problems.txt)" in captured.err
    assert len((in_tmp / "ds/problems.txt").read_text().splitlines()) == 12
    assert main(["voc", "out=ds"]) == 2
    assert main(["voc", f"devkit={kit}", f"out={kit}"]) == 2


def test_val_of_a_model_by_the_names_of_its_classes(digits, detector, in_tmp, capsys):
    assert main(["val", f"model={detector}", f"data={digits}", "plots=False", "coco=False", "json=m.json"]) == 0
    out = capsys.readouterr().out
    figures = json.loads((in_tmp / "m.json").read_text())
    assert list(figures["classes"])[:3] == ["zero", "one", "two"]  # the model's order, not that of the alphabet
    assert figures["map"] > 0.5
    assert abs(figures["map"] - figures["yolo_val_map50"]) < 0.05
    assert f"({figures['yolo_val_map50']:.4f} here)" in out
    files = in_tmp / "runs/val/exp/comp4"
    assert main(["val", f"detections={files}", f"devkit={digits}", "plots=False", "coco=False", "json=f.json"]) == 0
    assert json.loads((in_tmp / "f.json").read_text())["map"] == pytest.approx(figures["map"], abs=1e-12)


def test_val_of_classes_that_are_no_file_names(in_tmp, capsys):
    images = {"a": [("car/truck", (1, 1, 9, 9)), ("N/A", (11, 11, 19, 19))]}
    kit = write_devkit(in_tmp / "kit", images, {"test": "a"})
    (in_tmp / "r.json").write_text(
        json.dumps([{"image_id": "a", "category_id": 2, "bbox": [0, 0, 9, 9], "score": 0.9}])
    )
    words = [f"devkit={kit}", "coco=False", "name=r"]
    assert main(["val", "detections=r.json", *words]) == 0
    figures = json.loads((in_tmp / "runs/val/r/voc.json").read_text())
    assert figures["classes"]["car/truck"]["ap"] == 1.0
    assert main(["val", "detections=runs/val/r/comp4", *words, "json=again.json"]) == 0
    assert json.loads((in_tmp / "again.json").read_text())["classes"] == figures["classes"]


def test_val_says_where_categories_are_counted_from_or_asks(kit, in_tmp, capsys):
    (in_tmp / "r.json").write_text(
        json.dumps([{"image_id": "b", "category_id": 1, "bbox": [0, 0, 100, 80], "score": 1}])
    )
    assert val(kit, "r.json", "plots=False") == 2
    assert "say it with first_category=0 or first_category=1" in capsys.readouterr().err
    assert val(kit, "r.json", "plots=False", "first_category=0", "json=out.json") == 0
    assert json.loads((in_tmp / "out.json").read_text())["classes"]["dog"]["ap"] == 1.0


def test_val_says_which_objects_are_left_out(kit, good, in_tmp, capsys):
    assert main(["val", f"detections={good}", f"devkit={kit}", "classes=Cat,dog", "strict=False", "plots=False"]) == 3
    captured = capsys.readouterr()
    assert "3 objects of 'cat' left out: the class named is 'Cat'" in captured.err
    assert "no object is of class Cat" in captured.err
    assert "warning: 1 of the images of test are in train too (a)" in captured.err


@pytest.fixture
def some_digits(digits, in_tmp):
    """A devkit of six test images of the embedded one."""
    kit, root = in_tmp / "six", digits / "VOC2007"
    stems = (root / "ImageSets/Main/test.txt").read_text().split()[:6]
    images = {stem: (root / f"Annotations/{stem}.xml").read_text() for stem in stems}
    write_devkit(kit, images, {"test": stems}, pictures=False)
    for stem in stems:
        (image,) = root.glob(f"JPEGImages/{stem}.*")
        shutil.copy(image, kit / "VOC2007/JPEGImages")
    return kit


def test_val_leaves_out_images_that_are_missing_or_damaged(some_digits, detector, in_tmp, capsys):
    missing, empty, cut, *_ = sorted((some_digits / "VOC2007/JPEGImages").iterdir())
    missing.unlink()
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:300])
    assert main(["val", f"model={detector}", f"devkit={some_digits}", "plots=False", "coco=False", "json=m.json"]) == 3
    captured = capsys.readouterr()
    assert "test of VOC2007: 3 images" in captured.out
    assert f"{missing}: the image is missing: left out" in captured.err
    for file in (empty, cut):
        assert f"{file}: the image can't be read" in captured.err
    assert json.loads((in_tmp / "m.json").read_text())["map"] > 0
    for file in (some_digits / "VOC2007/JPEGImages").iterdir():
        file.unlink()
    assert main(["val", f"model={detector}", f"devkit={some_digits}", "plots=False"]) == 2
    assert "no image of test could be used" in capsys.readouterr().err


def test_val_of_images_in_folders_below(some_digits, detector, in_tmp):
    """Files of one name in two folders are two images."""
    root = some_digits / "VOC2007"
    assert main(["val", f"model={detector}", f"devkit={some_digits}", "plots=False", "coco=False", "json=a.json"]) == 0
    stems = []
    for number, file in enumerate(sorted((root / "JPEGImages").iterdir())):
        stems.append(f"cam{number // 2}/{number % 2}")
        for folder, old in (("JPEGImages", file), ("Annotations", root / f"Annotations/{file.stem}.xml")):
            new = root / folder / f"{stems[-1]}{old.suffix}"
            new.parent.mkdir(exist_ok=True)
            old.rename(new)
    (root / "ImageSets/Main/test.txt").write_text("".join(f"{stem}\n" for stem in stems))
    assert main(["val", f"model={detector}", f"devkit={some_digits}", "plots=False", "coco=False", "json=b.json"]) == 0
    assert figures_of("a.json") == figures_of("b.json")


def test_val_of_a_model_whose_names_are_a_list_or_none(some_digits, detector, in_tmp, capsys):
    import torch

    contents = torch.load(detector, weights_only=False)
    contents["model"].names = list(contents["model"].names.values())
    torch.save(contents, "list.pt")
    for model in (detector, "list.pt"):
        words = [
            f"model={model}",
            f"devkit={some_digits}",
            "plots=False",
            "coco=False",
            f"json={Path(model).stem}.json",
        ]
        assert main(["val", *words]) == 0
    assert figures_of("list.json") == figures_of("detector.json")
    del contents["model"].names
    torch.save(contents, "none.pt")
    capsys.readouterr()
    assert main(["val", "model=none.pt", f"devkit={some_digits}"]) == 2
    assert capsys.readouterr().err.strip() == (
        "yolo-os: error: model=none.pt: it names no classes, and those of the annotations are found by name"
    )


@pytest.mark.parametrize("word", ["iou=0", "iou=1.5", "conf=5", "nms_iou=-1", "bootstrap=-5", "bootstrap=1"])
def test_val_refuses_numbers_by_their_keys_before_anything_runs(kit, good, in_tmp, capsys, word):
    assert val(kit, good, word) == 2
    said = capsys.readouterr().err
    assert f"yolo-os: error: {word}" in said
    assert ": takes a number" in said
    assert not (in_tmp / "runs").exists()


def test_val_gives_coco_s_numbers_errors_and_parts_with_paired_intervals(kit, good, poor, in_tmp, capsys):
    (in_tmp / "groups.csv").write_text("a,day\nb,night\nc,night\n")
    assert val(kit, f"{poor},{good}", "plots=False", "json=out.json", "groups=groups.csv") == 0
    out = capsys.readouterr().out
    assert "COCO's numbers: skipped" not in out
    assert "AP50 lost to" in out
    assert "group night (3 boxes, 2 images)" in out
    assert "classes whose AP10 differs, p corrected for 2 classes (Holm): none" in out
    assert "* fewer than 10 boxes: cat, dog" in out
    figures = json.loads((in_tmp / "out.json").read_text())
    good_figures = figures["detectors"]["good"]
    assert {key: good_figures["coco"][key] for key in ("AP", "AP50", "AP75")} == pytest.approx(
        {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    )
    assert good_figures["coco"]["classes"]["dog"]["AP"] == pytest.approx(1.0)
    assert good_figures["errors"]["missed"]["count"] == 0
    gain = figures["gains"]["good"]
    for name in ("AP", "AP50", "AP75"):
        entry = gain["coco"][name]
        difference = good_figures["coco"][name] - figures["detectors"]["poor"]["coco"][name]
        assert entry["value"] == pytest.approx(difference, abs=1e-9)
        assert entry["low"] <= entry["value"] <= entry["high"]
        assert set(entry["classes"]) == {"cat", "dog"}
    assert gain["errors"]["missed"]["count"] < 0
    assert gain["ap"]["cat"]["p_holm"] >= gain["ap"]["cat"]["p"]
    night = figures["slices"]["group"]["night"]
    assert night["detectors"]["good"]["map"] == 1.0
    assert night["gains"]["good"]["coco"]["AP"]["value"] > 0
    assert set(night["gains"]["good"]["ap"]) == set(night["gains"]["good"]["ap07"]) == {"cat", "dog"}
    assert "; AP75 " in out.partition("group night")[2]
    assert set(figures["slices"]["size"]) == {"small", "medium", "large"}


def test_val_names_classes_that_count_as_0_without_a_detection(kit, in_tmp, capsys):
    folder = comp4(in_tmp / "cats", comp4_det_test_cat=["a 0.9 10 20 30 40"], comp4_det_test_dog=[])
    assert val(kit, folder, "plots=False", "min_boxes=2") == 0
    out = capsys.readouterr().out
    assert "no detection that counts, so an AP of 0 in the mean: dog" in out
    assert "* fewer than 2 boxes: dog" in out
    assert "mean AP10 of the 1 class of 2 boxes or more: 0.3333" in out


def test_val_of_an_empty_result_file_is_a_clear_0(kit, good, in_tmp, capsys):
    (in_tmp / "none.json").write_text("[]")
    assert val(kit, f"{good},none.json", "plots=False", "json=out.json") == 0
    captured = capsys.readouterr()
    assert "no detections of none.json are left: every AP is 0" in captured.err
    assert json.loads((in_tmp / "out.json").read_text())["detectors"]["none"]["coco"]["AP"] == 0
