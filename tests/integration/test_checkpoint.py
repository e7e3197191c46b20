import pickle
import shutil
import zipfile

import pytest
import torch
from builders import small_model
from ultralytics import YOLO

from yolo_os import prediction_layers
from yolo_os.errors import UserError
from yolo_os.integration.checkpoint import RECORD, load_checkpoint, save_shifted, shift_record


def shifted(checkpoint, out, factor=0.5):
    for layer in prediction_layers(checkpoint.model):
        layer.module.weight.data.mul_(factor)
    save_shifted(
        checkpoint, checkpoint.model, shift_record(checkpoint, checkpoint.model, {"method": "sos"}, "0.1.0"), out
    )
    return torch.load(out, weights_only=False)


def test_a_shifted_checkpoint_is_an_ordinary_one(detector, tmp_path):
    before = torch.load(detector, weights_only=False)
    after = shifted(load_checkpoint(detector), tmp_path / "out.pt")
    assert after.keys() == before.keys() | {RECORD}
    for key in before.keys() - {"model"}:
        assert after[key] == before[key], key
    assert next(after["model"].parameters()).dtype == next(before["model"].parameters()).dtype
    moved = {
        f"model.{len(after['model'].model) - 1}.{tower}.{i}.2.weight" for tower in ("cv2", "cv3") for i in range(3)
    }
    old = before["model"].state_dict()
    for name, tensor in after["model"].state_dict().items():
        assert torch.equal(tensor, old[name] / 2 if name in moved else old[name]), name
    yolo = YOLO(tmp_path / "out.pt")
    assert yolo.names == YOLO(detector).names
    assert yolo.ckpt["train_args"] == before["train_args"]
    assert yolo.predict(torch.rand(1, 3, 64, 64), verbose=False)


def test_the_source_is_not_changed(detector, tmp_path):
    source = tmp_path / "in.pt"
    shutil.copy(detector, source)
    before = source.read_bytes()
    shifted(load_checkpoint(source), tmp_path / "out.pt")
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "out.pt"]


def test_a_second_shift_appends_its_record(detector, tmp_path):
    shifted(load_checkpoint(detector), tmp_path / "one.pt")
    again = shifted(load_checkpoint(tmp_path / "one.pt"), tmp_path / "two.pt")
    assert [record["source"] for record in again[RECORD]] == [detector.name, "one.pt"]
    assert again[RECORD][0].keys() == {
        *("version", "date", "source", "source_sha256", "recipe", "layers_moved", "keep")
    }
    assert again[RECORD][0]["layers_moved"] == 6
    assert again[RECORD][0]["keep"] == pytest.approx(0.25, abs=1e-3)
    assert len(load_checkpoint(tmp_path / "two.pt").shifts) == 2


def test_an_unfinished_trainings_ema_is_what_is_shifted(detector, tmp_path):
    contents = torch.load(detector, weights_only=False)
    ema = contents["model"]
    contents.update(model=small_model().half(), ema=ema, optimizer={"state": {}}, epoch=3, updates=7)
    torch.save(contents, tmp_path / "last.pt")
    after = shifted(load_checkpoint(tmp_path / "last.pt"), tmp_path / "out.pt")
    assert after["ema"] is None is after["optimizer"] is after["updates"]
    assert after["epoch"] == -1
    layers = zip(prediction_layers(after["model"]), prediction_layers(ema))
    assert all(torch.equal(a.matrix, b.matrix / 2) for a, b in layers)


def test_the_working_copy_is_float32_with_complete_args(detector):
    checkpoint = load_checkpoint(detector)
    assert next(checkpoint.model.parameters()).dtype == torch.float32
    assert checkpoint.precision == torch.float16
    assert checkpoint.imgsz == 160
    assert checkpoint.model.args["box"] > 0
    assert not checkpoint.model.training


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_pickle_is_refused_and_runs_nothing(detector, tmp_path):
    contents = torch.load(detector, weights_only=False)
    torch.save({**contents, "extra": Payload(tmp_path / "owned")}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"refused: it holds .*open.*trust=True"):
        load_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "owned").exists()
    load_checkpoint(tmp_path / "bad.pt", trust=True)
    assert (tmp_path / "owned").exists()  # what trusting it means


def truncated(source, path):
    path.write_bytes(source.read_bytes()[:100_000])


def no_torch_archive(source, path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")


DAMAGE = {
    "truncated.pt": (truncated, "truncated or damaged"),
    "zip.pt": (no_torch_archive, "truncated or damaged"),
    "empty.pt": (lambda source, path: path.write_bytes(b""), "the file is empty"),
    "text.pt": (lambda source, path: path.write_text("hello"), "no checkpoint that Ultralytics can read"),
    "pickle.pt": (
        lambda source, path: path.write_bytes(pickle.dumps({"a": 1})),
        "no checkpoint that Ultralytics can read",
    ),
    "state.pt": (lambda source, path: torch.save({"model": {"w": torch.ones(1)}}, path), "it holds no model"),
    "tensor.pt": (lambda source, path: torch.save(torch.ones(1), path), "it holds no model"),
    "exported.onnx": (lambda source, path: path.write_bytes(b"x"), "takes a .pt checkpoint"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_files_that_are_no_checkpoint(detector, tmp_path, name):
    make, message = DAMAGE[name]
    make(detector, tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        load_checkpoint(tmp_path / "model.pt")


def test_missing_files_are_not_downloaded(in_tmp):
    with pytest.raises(UserError, match=r"model=yolo11n\.pt: no such file; yolo-os downloads nothing"):
        load_checkpoint("yolo11n.pt")
    with pytest.raises(UserError, match=r"model=\S*none\.pt: no such file$"):
        load_checkpoint(in_tmp / "none.pt")


def test_writing_over_the_source_is_refused(detector, tmp_path):
    source = tmp_path / "in.pt"
    shutil.copy(detector, source)
    (tmp_path / "link.pt").symlink_to(source)
    checkpoint = load_checkpoint(source)
    for out in (source, tmp_path / "link.pt"):
        with pytest.raises(UserError, match="the input is never changed"):
            save_shifted(checkpoint, checkpoint.model, {}, out)
