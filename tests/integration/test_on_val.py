"""The final shift of a training as val judges it."""

import json

import pytest
from trainings import during, same

from yolo_os.evaluation.bootstrap import Difference
from yolo_os.integration import final
from yolo_os.integration.on_val import OnVal


def difference(value, low, high):
    return Difference(value=value, low=low, high=high, level=0.95, stderr=0.01, bias=0.0, p=0.5)


def test_the_log_names_the_unshifted_weights_beside_both_figures_and_their_interval(train, caplog):
    run = train(during(None, final="budget"), epochs=1)
    assert run.weights("best")["yolo_os"]
    val = json.loads((run.folder / "os/best/val.json").read_text())
    assert val["taken"] and val["images"] == 4
    said = f"mAP50 on 4 val images {val['before']:.4f} before, {val['after']:.4f} after"
    (line,) = [each for each in caplog.messages if "mAP50-95(B) of best.pt on val" in each]
    assert said in line
    assert line.endswith("within noise; weights/best-unshifted.pt holds the weights before")
    assert said in (run.folder / "os/best/report.txt").read_text()
    assert "0 shifts during training" in caplog.text


def test_what_val_calls_worse_beyond_its_interval_is_not_written(train, caplog, monkeypatch):
    stock = train(name="stock", epochs=1)
    worse = OnVal(0.5, 0.4, difference(-0.1, -0.15, -0.05), 4)
    monkeypatch.setattr(final, "judge_on_val", lambda *_, **__: worse)
    run = train(during(None, final="budget"), epochs=1)
    assert same(run.state("best"), stock.state("best"))
    assert not (run.folder / "weights/best-unshifted.pt").exists()
    assert (
        "best.pt stays as trained. A final shift was tried: mAP50 on 4 val images 0.5000 before, 0.4000 after, "
        "-0.1000 [-0.1500, -0.0500]: worse"
    ) in caplog.text
    assert json.loads((run.folder / "os/best/val.json").read_text())["taken"] is False
    assert (run.folder / "os/best/report.txt").read_text().endswith("best.pt stays as trained\n")


@pytest.mark.parametrize(
    ("low", "high", "word"), [(-0.2, -0.01, "worse"), (-0.1, 0.1, "within noise"), (0.01, 0.2, "better")]
)
def test_the_interval_decides_what_is_said(low, high, word):
    found = OnVal(0.5, 0.6, difference(0.1, low, high), 1)
    assert str(found).startswith("mAP50 on 1 val image 0.5000 before")
    assert str(found).endswith(word)
    assert found.worse == (word == "worse")


def test_a_val_split_without_labels_says_nothing():
    nan = float("nan")
    found = OnVal(nan, nan, difference(nan, nan, nan), 3)
    assert not found.worse
    assert "no labelled object says more" in str(found)
    assert found.to_dict()["difference"] == {"value": None, "low": None, "high": None}
