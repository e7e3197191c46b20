"""Classic YOLOv5 checkpoints through the package: read, inspected, shifted by every method, written in kind, judged."""

import io
import json
import struct
import zipfile

import classic
import numpy as np
import pytest
import torch
from builders import labelled_batch, write_devkit
from classic import load_as_the_repository_does

from yolo_os import ShiftRecipe, prediction_layers, shift_
from yolo_os.cli import main
from yolo_os.errors import UserError
from yolo_os.integration import yolov5
from yolo_os.integration.checkpoint import load_checkpoint, save_shifted, shift_record
from yolo_os.integration.toward import read_origin
from yolo_os.shifter import Weights
from yolo_os.toward import line_to


def save(checkpoint, out, method="sos"):
    record = shift_record(checkpoint, checkpoint.model, {"method": method}, "0.1.0")
    save_shifted(checkpoint, checkpoint.model, record, out)
    return out


def moved(path, factor=0.5):
    """A checkpoint whose prediction layers are a half (or else) of what they were, biases included."""
    checkpoint = load_checkpoint(path)
    for layer in prediction_layers(checkpoint.model):
        layer.module.weight.data.mul_(factor)
        layer.module.bias.data.mul_(factor)
    return checkpoint


# What is known of the training


def test_settings_of_the_loss_are_those_of_the_file(tmp_path):
    classic.classic(tmp_path / "a.pt", hyp={**classic.HYP, "box": 0.07, "cls_pw": 0.5})
    args = load_checkpoint(tmp_path / "a.pt").model.args
    assert (args["box"], args["cls"], args["obj"], args["cls_pw"], args["anchor_t"]) == (0.07, 0.3, 0.7, 0.5, 4.0)


def test_where_the_file_has_none_they_are_the_defaults_scaled(tmp_path):
    classic.classic(tmp_path / "a.pt", "P6", nc=8, hyp={})
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    args = checkpoint.model.args
    assert checkpoint.imgsz == 640
    assert (args["box"], args["cls"], args["obj"]) == pytest.approx((0.0375, 0.0375, 0.75))


def test_the_image_size_is_that_of_the_training(tmp_path):
    classic.classic(tmp_path / "a.pt", "v7.0")
    assert load_checkpoint(tmp_path / "a.pt").imgsz == 96
    classic.classic(tmp_path / "b.pt", "v6.0")
    assert load_checkpoint(tmp_path / "b.pt").imgsz == 640


def test_focal_loss_is_said(tmp_path, caplog):
    classic.classic(tmp_path / "a.pt", hyp={**classic.HYP, "fl_gamma": 1.5})
    load_checkpoint(tmp_path / "a.pt")
    assert "trained with focal loss" in caplog.text


def test_of_an_unfinished_training_the_average_is_taken_and_that_is_said(tmp_path, caplog):
    average = classic.stand_in(*classic.network("v6.0", 3), seed=7)
    classic.classic(tmp_path / "a.pt", ema=average.half())
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.classic.part == "ema"
    assert "its 'ema' is taken" in caplog.text
    weight = checkpoint.model.state_dict()["model.0.conv.weight"]
    torch.testing.assert_close(weight, average.float().state_dict()["model.0.conv.weight"])
    save(moved(tmp_path / "a.pt"), tmp_path / "b.pt")
    with classic.repository():
        before, after = (torch.load(tmp_path / name, weights_only=False) for name in ("a.pt", "b.pt"))
    for part, factor in (("model", 1.0), ("ema", 0.5)):
        old, new = before[part].model[-1].m[0].weight, after[part].model[-1].m[0].weight
        torch.testing.assert_close(new, old * factor)
    assert load_checkpoint(tmp_path / "b.pt").shifts[0]["part"] == "ema"


# What is written


@pytest.mark.parametrize("version", ["v5.0", "v6.0", "v7.0", "P6"])
@pytest.mark.parametrize("half", [True, False])
def test_the_repository_reads_what_is_written(tmp_path, version, half):
    classic.classic(tmp_path / "a.pt", version, half=half)
    save(moved(tmp_path / "a.pt", 2), tmp_path / "b.pt")  # twice a number of float16 is one of these, too
    before, after = (load_as_the_repository_does(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert type(after) is type(before)
    assert after.yaml == before.yaml
    last = f"model.{len(before.model) - 1}.m."
    new = after.state_dict()
    for name, old in before.state_dict().items():
        assert torch.equal(new[name], old * 2 if name.startswith(last) else old), name
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        own = load_checkpoint(tmp_path / "b.pt").model.double()(image.double())[0]
        torch.testing.assert_close(after.double()(image.double())[0], own, rtol=1e-8, atol=1e-8)


def entries(path):
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        return {entry.filename: opened.read(entry) for entry in opened.infolist()}


def test_every_other_byte_stays(tmp_path):
    classic.classic(tmp_path / "a.pt")
    checkpoint = load_checkpoint(tmp_path / "a.pt").classic
    places = {storage.data_ptr(): key for key, storage in checkpoint.storages.items()}
    save(moved(tmp_path / "a.pt"), tmp_path / "b.pt")
    before, after = entries(tmp_path / "a.pt"), entries(tmp_path / "b.pt")
    heads = [tensor for name, tensor in checkpoint.stored.items() if name.startswith("model.13.m.")]
    layers = [f"a/data/{places[tensor.untyped_storage().data_ptr()]}" for tensor in heads]
    assert len(layers) == 4
    assert {name for name in before if after[name] != before[name]} == set(layers)
    assert set(after) - set(before) == {"a/yolo_os/0.json"}
    old, new = ((tmp_path / name).read_bytes() for name in ("a.pt", "b.pt"))
    with zipfile.ZipFile(tmp_path / "a.pt") as opened:
        changed = np.zeros(len(old), dtype=bool)
        for name in layers:
            entry = opened.getinfo(name)
            start = entry.header_offset
            begin = start + 30 + sum(struct.unpack_from("<HH", old, start + 26))
            changed[begin : begin + entry.file_size] = True
            changed[start + 14 : start + 18] = changed[begin + entry.file_size :][:8] = True  # its checksum
        end = opened.start_dir
    same = np.frombuffer(old, np.uint8)[:end] == np.frombuffer(new, np.uint8)[:end]
    assert (same | changed[:end]).all()


def test_nothing_moved_writes_the_same_tensors(tmp_path):
    classic.classic(tmp_path / "a.pt")
    save(load_checkpoint(tmp_path / "a.pt"), tmp_path / "b.pt")
    before, after = entries(tmp_path / "a.pt"), entries(tmp_path / "b.pt")
    assert {name: after[name] for name in before} == before


def test_records_add_up(tmp_path):
    classic.classic(tmp_path / "a.pt")
    save(moved(tmp_path / "a.pt"), tmp_path / "b.pt", "sos")
    save(moved(tmp_path / "b.pt"), tmp_path / "c.pt", "budget")
    shifts = load_checkpoint(tmp_path / "c.pt").shifts
    assert [(each["recipe"]["method"], each["source"]) for each in shifts] == [("sos", "a.pt"), ("budget", "b.pt")]
    assert [each["layers_moved"] for each in shifts] == [2, 2]
    first = load_as_the_repository_does(tmp_path / "a.pt").model[-1].m[0].weight
    torch.testing.assert_close(load_as_the_repository_does(tmp_path / "c.pt").model[-1].m[0].weight, first / 4)


def test_the_input_is_never_written(tmp_path):
    classic.classic(tmp_path / "a.pt")
    checkpoint = moved(tmp_path / "a.pt")
    with pytest.raises(UserError, match="the input is never changed"):
        save(checkpoint, tmp_path / "a.pt")
    assert not load_checkpoint(tmp_path / "a.pt").shifts


def test_weights_that_share_their_bytes_are_not_written_alone(tmp_path):
    model = classic.stand_in(*classic.network("v6.0", 3))
    head = model.model[-1]
    head.m[1].bias = torch.nn.Parameter(head.m[0].bias.data[:])  # a view of it
    with classic.repository():
        torch.save({"model": model}, tmp_path / "a.pt")
    checkpoint = moved(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"tensor model\.13\.m\.0\.bias shares its storage"):
        save(checkpoint, tmp_path / "b.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_an_archive_whose_checksums_come_first_is_written_too(tmp_path):
    """As other zip writers make them: torch puts checksums behind the bytes."""
    classic.classic(tmp_path / "a.pt")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, data in entries(tmp_path / "a.pt").items():
            opened.writestr(name, data)
    (tmp_path / "b.pt").write_bytes(buffer.getvalue())
    save(moved(tmp_path / "b.pt"), tmp_path / "c.pt")
    entries(tmp_path / "c.pt")
    old, new = (load_as_the_repository_does(tmp_path / name).model[-1].m[0].weight for name in ("b.pt", "c.pt"))
    torch.testing.assert_close(new, old / 2)


# Shifts


@pytest.mark.parametrize("method", ["os", "sos", "budget"])
@pytest.mark.parametrize("version", ["v6.0", "P6"])
def test_every_method_shifts_it(tmp_path, method, version):
    classic.classic(tmp_path / "a.pt", version)
    model = load_checkpoint(tmp_path / "a.pt").model
    batches = [labelled_batch(model, seed=seed) for seed in range(3)]
    settings = {"os": {}, "sos": {"samples": 0.5}, "budget": {"keep": 0.7, "max_loss_rise": None}}[method]
    report = shift_(model, batches, ShiftRecipe(method=method, **settings), held_out=batches[:1])
    assert [layer.name for layer in report.layers] == [f"m.{i}" for i in range(len(report.layers))]
    assert {layer.role for layer in report.layers} == {"joint"}
    assert list(report.held_out.after) == ["total", "box", "obj", "cls"]
    assert not any("no training loss" in warning for warning in report.warnings)
    if method == "budget":
        assert len(report.moved) == len(report.layers)
        assert report.keep == pytest.approx(0.7, abs=1e-3)
    if method == "sos":
        assert len(report.moved) == len(report.layers)
        assert not any("came to" in warning for warning in report.warnings)  # foreground, as asked for
        assert all(layer.residual < 1e-3 for layer in report.layers)
    assert all(layer.norm_after <= layer.norm_before * (1 + 1e-6) for layer in report.layers)


def test_the_guard_lets_through_what_its_loss_allows(tmp_path):
    classic.classic(tmp_path / "a.pt")
    model = load_checkpoint(tmp_path / "a.pt").model
    batches = [labelled_batch(model, seed=seed) for seed in range(3)]
    report = shift_(model, batches, ShiftRecipe(max_loss_rise=0.05), held_out=batches[:2])
    assert report.trials[-1].passed
    assert report.trials[-1].rise == pytest.approx(report.held_out.rise, abs=1e-6)


# The command line


@pytest.fixture
def kit(tmp_path):
    """Classes as VOC names them, of which the model has COCO's names among others."""
    boxes = [("tvmonitor", (10, 20, 60, 70)), ("aeroplane", (30, 5, 90, 60))]
    images = {f"{i:03}": boxes[: 1 + i % 2] for i in range(12)}
    sets = {"train": list(images)[:8], "test": list(images)[8:]}
    return write_devkit(tmp_path / "kit", images, sets)


# VOC's twenty as COCO calls them, among others and in an order of their own.
COCO = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "bottle",
    "chair",
    "couch",
    "potted plant",
    "dining table",
    "tv",
]


@pytest.mark.parametrize("method", ["os", "sos", "budget"])
def test_from_the_command_line(method, kit, in_tmp, capsys):
    classic.classic(in_tmp / "a.pt", "v7.0", nc=21, names=COCO)
    words = ["shift", "model=a.pt", f"data={kit}", f"method={method}", "out=b.pt", "json=b.json", "plots=False"]
    extra = ["samples=8"] if method == "sos" else ["max_loss_rise=0.5"] if method == "budget" else []
    assert main([*words, "images=6", "held_out=2", "batch=2", "device=cpu", *extra]) == 0
    report = json.loads((in_tmp / "b.json").read_text())
    assert [layer["name"] for layer in report["layers"]] == ["m.0", "m.1"]
    assert {layer["role"] for layer in report["layers"]} == {"joint"}
    assert report["loss"]["held_out"]["before"]["cls"] > 0
    assert report["precision"] == "float16"
    capsys.readouterr()
    assert main(["inspect", "model=b.pt", "json=i.json"]) == 0
    told = json.loads((in_tmp / "i.json").read_text())
    assert told["head"] == "AnchorDetect"
    assert [layer["n"] for layer in told["layers"]] == [78, 78]
    assert told["shifts"][0]["recipe"]["method"] == method
    assert told["shifts"][0]["part"] == "model"
    for layer, old in zip(told["layers"], report["layers"], strict=True):
        assert layer["norm_before"] == pytest.approx(old["norm_after"], rel=1e-6)
    assert f"shift 1: {method}" in capsys.readouterr().out
    load_as_the_repository_does(in_tmp / "b.pt")


def test_all_layers_move_towards_another_file_and_are_written_in_kind(tmp_path):
    classic.classic(tmp_path / "new.pt", kind=classic.DetectionModel, seed=1)
    classic.classic(tmp_path / "old.pt", kind=classic.DetectionModel, seed=2)
    new, old = load_checkpoint(tmp_path / "new.pt"), read_origin(tmp_path / "old.pt", {}, tmp_path / "new.pt")
    line = line_to(new.model, old, "detect")
    assert line.complete
    Weights(line.tensors, new.precision).write_(line.values(0.25))
    save_shifted(new, new.model, shift_record(new, new.model, {"method": "toward"}, "0.1.0"), tmp_path / "out.pt")
    ends = [load_checkpoint(tmp_path / name).model.state_dict() for name in ("new.pt", "old.pt", "out.pt")]
    for start, end, found in ([each[key] for each in ends] for key in ends[0]):
        if start.is_floating_point():
            torch.testing.assert_close(found, end + 0.25 * (start - end), rtol=2e-3, atol=2e-3)
    load_as_the_repository_does(tmp_path / "out.pt")


def test_val_matches_the_names_of_coco_and_voc(kit, in_tmp, capsys):
    classic.classic(in_tmp / "a.pt", "v7.0", nc=21, names=COCO)
    words = ["val", "model=a.pt", f"data={kit}", "plots=False", "json=v.json", "device=cpu", "coco=False"]
    assert main([*words, "max_det=1000", "conf=0.0001"]) == 0
    figures = json.loads((in_tmp / "v.json").read_text())
    assert figures["detections"] > 0
    assert "aeroplane" in capsys.readouterr().out


def test_what_val_scores_are_the_boxes_that_the_repository_makes(kit, in_tmp):
    """Best box of each image, through Ultralytics' validator and through the stand-in."""
    from yolo_os.integration.detect import detect

    model = classic.classic(in_tmp / "a.pt", "v7.0", nc=21, names=COCO)
    found = detect(in_tmp / "a.pt", kit, imgsz=64, conf=0.0001, device="cpu")
    assert found.names == dict(enumerate(COCO))
    image = torch.full((1, 3, 64, 64), 114 / 255)
    image[:, :, 6:58] = 90 / 255  # 100 x 80 pixels fill 64 x 51.2
    with torch.no_grad():
        scores = model(image)[0][0, 4:]
    best = next(iter(found.boxes.values()))[0]
    assert best[4] == pytest.approx(float(scores.max()), rel=0.05)


def test_labels_are_numbered_as_the_model_numbers_its_classes(kit, tmp_path):
    from yolo_os.integration.data import calibration_batches

    classic.classic(tmp_path / "a.pt", nc=21, names=COCO)
    model = load_checkpoint(tmp_path / "a.pt").model
    batches, _ = calibration_batches(model, kit, ShiftRecipe(images=8, held_out=0), imgsz=64)
    seen = {int(each) for batch in batches for each in batch["cls"].flatten()}
    assert seen == {COCO.index("tv"), COCO.index("airplane")}


def test_data_with_a_class_that_the_model_lacks_are_refused(kit, tmp_path):
    from yolo_os.integration.data import calibration_batches

    classic.classic(tmp_path / "a.pt", nc=21, names=[*COCO[:20], "monitor"])
    model = load_checkpoint(tmp_path / "a.pt").model
    with pytest.raises(UserError, match="has 20 classes and the model 21"):
        calibration_batches(model, kit, ShiftRecipe(images=8, held_out=0), imgsz=64)


def test_the_real_one(shared, in_tmp):
    source, reports = shared / "weights" / "yolov5n_coco80.pt", {}
    for method in ("sos", "budget"):
        words = ["shift", f"model={source}", f"data={shared / 'data' / 'VOCdevkit'}", f"method={method}", "out=b.pt"]
        words += ["images=32", "held_out=16", "imgsz=160", "batch=16", "device=cpu", "json=b.json", "plots=False"]
        words += ["sampling=uniform"] if method == "sos" else ["max_loss_rise=None", f"keep={reports['sos']['keep']}"]
        assert main(words) == 0
        reports[method] = json.loads((in_tmp / "b.json").read_text())
        assert [layer["m"] for layer in reports[method]["layers"]] == [64, 128, 256]
        assert all(layer["unchanged"] is None for layer in reports[method]["layers"])
    rises = {method: report["loss_after"] / report["loss_before"] - 1 for method, report in reports.items()}
    assert reports["budget"]["keep"] == pytest.approx(reports["sos"]["keep"], abs=1e-3)
    assert rises["sos"] > 0.02
    assert abs(rises["budget"]) < rises["sos"] / 5
    before, after = yolov5.read(source), yolov5.read(in_tmp / "b.pt")
    new = after.model.state_dict()
    changed = {name for name, old in before.model.state_dict().items() if not torch.equal(new[name], old)}
    assert changed == {f"model.24.m.{i}.{each}" for i in range(3) for each in ("weight", "bias")}
    assert after.records[0]["layers_moved"] == 3
