"""`yolo-os trace` and `hessian_trace` as a user meets them."""

from __future__ import annotations

import json

import pytest
import torch
from builders import digits_subset, labelled_batch, small_model
from ultralytics import YOLO

from yolo_os import UserError, hessian_trace
from yolo_os.cli import main
from yolo_os.heads import find_head
from yolo_os.integration.flatness import trace_bar


@pytest.fixture
def data(digits, tmp_path):
    """Twelve images of digits."""
    return digits_subset(tmp_path, digits, train=12)


def shifted(detector, path, factor=0.9):
    """A copy of the embedded detector whose class layers are smaller."""
    contents = torch.load(detector, weights_only=False)
    for layer in find_head(contents["model"]).layers:
        if layer.role == "cls":
            layer.module.weight.data *= factor
    torch.save(contents, path)
    return path


def test_the_head_of_two_models_in_closed_form(detector, data, in_tmp, capsys):
    other = shifted(detector, in_tmp / "b.pt")
    words = [f"model={detector},{other}", f"data={data}", "layers=head", "imgsz=64", "plots=False", "json=flat.json"]
    assert main(["trace", *words]) == 0
    printed = capsys.readouterr()
    assert "note: images=64: train has 12" in printed.err
    said = printed.out
    assert "exact" in said and "closed form" in said and "training loss of 12 images" in said
    found = json.loads((in_tmp / "flat.json").read_text())
    assert found == json.loads((in_tmp / "runs" / "trace" / "exp" / "report.json").read_text())
    first, second = found["models"]
    assert first["model"] == str(detector) and first["stderr"] == 0 and first["trace"] > 0
    assert first["exact"] == first["trace"] == pytest.approx(sum(each["value"] for each in first["layers"].values()))
    assert second["head_squared_norm"] < first["head_squared_norm"]
    [change, normalised] = found["differences"]
    assert change["value"] == pytest.approx(second["trace"] - first["trace"]) and change["paired"]
    assert normalised["figure"] == "normalised"


def test_a_selection_by_probes_with_paired_differences(detector, data, in_tmp, capsys):
    other = shifted(detector, in_tmp / "b.pt", 0.999)
    words = [
        f"model={detector},{other}",
        f"data={data}",
        "layers=*.cv3.0.1.conv.weight",
        "imgsz=64",
        "tolerance=0.5",
        "plots=False",
    ]
    assert main(["trace", *words, "measures=all", "json=flat.json"]) == 0
    found = json.loads((in_tmp / "flat.json").read_text())
    first, second = found["models"]
    assert first["exact"] is None
    assert 0 < first["stderr"] <= 0.5 * abs(first["trace"])
    assert first["low"] < first["trace"] < first["high"]
    assert first["eigenvalue"]["value"] > 0 and first["gauss_newton"]["value"] > 0
    assert first["sharpness"]["rise"] > 0 and first["relative_sharpness"]["rise"] >= 0
    changes = {each["figure"]: each for each in found["differences"]}
    assert changes.keys() == {"trace", "normalised", "gauss_newton"}
    assert changes["trace"]["value"] == pytest.approx(second["trace"] - first["trace"])
    assert changes["trace"]["stderr"] < 0.2 * first["stderr"]
    assert "largest eigenvalue" in capsys.readouterr().out


def test_the_same_by_probes_as_in_closed_form(detector, data):
    """A pattern of parameters that leaves a bias out has no closed form."""
    exact = hessian_trace(detector, data, layers="cv3.0", imgsz=64)
    probed = hessian_trace(YOLO(detector), str(data), layers="*.cv3.0.2.weight", imgsz=64, tolerance=0.1)
    [layer] = exact.models[0].layers
    assert layer == "cv3.0" and exact.stderr == 0 and probed.models[0].exact is None
    bias = hessian_trace(detector, data, layers="*.cv3.0.2.bias", imgsz=64, tolerance=0.1)
    error = (probed.stderr**2 + bias.stderr**2) ** 0.5
    assert abs(float(probed) + float(bias) - exact.trace) < 3 * error + 1e-6


def test_batches_of_ones_own_and_a_model_in_training(detector):
    model = small_model()
    report = hessian_trace(
        model.train(), [labelled_batch(model)], layers="box,model.0", tolerance=0.9, measures="trace"
    )
    assert report.models[0].model == "model" and report.images == 4
    assert set(report.models[0].layers) == {"cv2.0", "cv2.1", "cv2.2", "model.0.conv", "model.0.bn"}
    assert model.training


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["layers=neck"], "layers=neck: names no layer"),
        (["tolerance=0"], "tolerance=0.0: takes a number between 0 and 1"),
        (["measures=flatness"], "measures=flatness: use some of"),
        (["imgsz=100"], "imgsz=100"),
    ],
)
def test_what_is_refused(detector, data, in_tmp, capsys, words, said):
    assert main(["trace", f"model={detector}", f"data={data}", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out  # no bar above the error
    assert not (in_tmp / "runs").exists()


def test_of_one_image_it_says_so(detector, data, in_tmp, capsys):
    assert main(["trace", f"model={detector}", f"data={data}", "images=1", "layers=head"]) == 0
    assert "training loss of 1 image; closed form" in capsys.readouterr().out


def test_an_error_amid_the_rounds_erases_the_bar(capsys):
    def fail():
        with trace_bar() as notice:
            notice("trace 12.3")
            raise UserError("no memory")

    with pytest.raises(UserError):
        fail()
    assert capsys.readouterr().out.endswith("\r\x1b[K")


def test_models_that_have_no_trace(detector, data, tmp_path):
    contents = torch.load(detector, weights_only=False)
    fused = tmp_path / "fused.pt"
    torch.save({**contents, "model": contents["model"].float().fuse(verbose=False).half()}, fused)
    with pytest.raises(UserError, match=r"fused\.pt: it is fused"):
        hessian_trace(fused, data)
    model = small_model()
    with pytest.raises(UserError, match="no labels"):
        hessian_trace(model, [labelled_batch(model)["img"]])
    with pytest.raises(UserError, match="half precision"):
        hessian_trace(small_model().half(), [labelled_batch(model)])
    with pytest.raises(UserError, match="other classes"):
        hessian_trace([model, detector], data)
    model.model[0].conv.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"not finite: model\.0\.conv\.weight"):
        hessian_trace(model, [labelled_batch(model)])


def test_too_little_memory_advises_a_smaller_batch(monkeypatch):
    from yolo_os.flatness import measure

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(measure, "prediction_traces", full)
    model = small_model()
    with pytest.raises(UserError, match="smaller batch="):
        hessian_trace(model, [labelled_batch(model)], layers="head")


def test_a_shift_reports_the_trace_before_and_after(detector, data, in_tmp, capsys):
    words = [f"model={detector}", f"data={data}", "imgsz=64", "images=8", "held_out=4", "out=b.pt", "plots=False"]
    assert main(["shift", *words, "max_loss_rise=None", "trace=True", "json=shift.json"]) == 0
    assert "trace of the Hessian over the prediction layers, 4 images: " in capsys.readouterr().out
    change = json.loads((in_tmp / "shift.json").read_text())["trace"]
    assert change["low"] == change["high"] == pytest.approx(change["after"] - change["before"])
    both = hessian_trace([detector, "b.pt"], str(data), layers="head", imgsz=64, images=12)
    drawn = change["before"] / both.models[0].trace  # other images, so not the same figure
    assert 0.2 < drawn < 5 and change["after"] != change["before"]
    assert main(["shift", *words[:-2], "out=c.pt", "max_loss_rise=None", "json=plain.json", "plots=False"]) == 0
    assert json.loads((in_tmp / "plain.json").read_text())["trace"] is None


def test_inspect_adds_the_trace(detector, data, in_tmp, capsys):
    words = [f"model={detector}", f"data={data}", "imgsz=64", "images=6", "json=layers.json"]
    assert main(["inspect", *words, "trace=True"]) == 0
    assert "closed form, exact" in capsys.readouterr().out
    found = json.loads((in_tmp / "layers.json").read_text())["trace"]
    assert found["stderr"] == 0 and found["layers"].keys() == {
        f"{kind}.{i}" for kind in ("cv2", "cv3") for i in range(3)
    }
    assert main(["inspect", f"model={detector}", "trace=True"]) == 2
    assert "give data=" in capsys.readouterr().err


def test_pictures_of_two_models_with_their_data(detector, data, in_tmp, capsys):
    other = shifted(detector, in_tmp / "b.pt")
    words = [f"data={data}", "layers=head", "imgsz=32", "images=2"]
    assert main(["trace", f"model={detector},{other}", *words, "surface=True"]) == 0
    assert "pictures: line.png, norms.png, surface.png" in capsys.readouterr().out
    made = json.loads((in_tmp / "runs" / "trace" / "exp" / "landscape.json").read_text())
    train, held_out = made["line"]["losses"].values()
    assert list(made["line"]["losses"]) == ["2 images of train", "2 other images of train"]
    start, end = made["line"]["places"].index(0), made["line"]["places"].index(1)
    report = hessian_trace([detector, other], str(data), layers="head", imgsz=32, images=2)
    assert train[start] == pytest.approx(report.models[0].loss, rel=1e-4)
    surface = made["surface"]["losses"]
    middle = made["surface"]["across"].index(pytest.approx(0, abs=1e-9))
    assert train[end] != train[start] and held_out[start] != train[start]
    assert min(map(min, surface)) == pytest.approx(min(surface[middle]), rel=0.2)
    assert main(["trace", f"model={detector},{detector}", *words]) == 0
    assert "no line drawn" in capsys.readouterr().out
