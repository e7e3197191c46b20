from dataclasses import replace

import numpy as np
import pytest

from yolo_os.evaluation.bootstrap import bootstrap, image_changes
from yolo_os.evaluation.voc import evaluate_voc
from yolo_os.plots import evaluation
from yolo_os.plots.contact_sheet import Found, Sheet, plot_contact_sheet


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be saved."""
    kept = []
    monkeypatch.setattr(evaluation, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def results():
    """Two detectors of a class of 40 boxes, of which they find 30 and 34, and one of 2, of which they find 0 and 2."""
    boxes = np.tile([[1, 1, 20, 20]], (42, 1))
    labels = np.array([0] * 40 + [1] * 2)
    pair = []
    for many, few in ((30, 0), (34, 2)):
        rows = [*range(many), *range(40, 40 + few)]
        columns = (range(42), labels, boxes, [0] * 42, rows, labels[rows], boxes[rows], np.linspace(1, 0.5, len(rows)))
        pair.append(evaluate_voc(*columns, num_classes=2, classes=("many", "few"), images=np.arange(42)))
    return pair


def test_a_rare_class_is_marked_and_does_not_set_the_axis(figures, tmp_path):
    first, second = results()
    gain = bootstrap(first, second, replicates=50)
    gain = replace(gain, ap=(gain.ap[0], replace(gain.ap[1], low=-5.0, high=5.0)))
    evaluation.plot_differences(first.names, gain, "t", tmp_path / "x.png", first.npos.tolist())
    axis = figures[0].axes[0]
    assert -1.2 < axis.get_xlim()[0] < axis.get_xlim()[1] < 1.2
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == ["mean", "mean, 10+ boxes", "many", "few*"]
    assert "fewer than 10 boxes" in axis.get_xlabel()
    side = [label.get_text() for child in axis.child_axes for label in child.get_yticklabels()]
    assert side[3].split() == ["+1.0000", "2", "boxes"]


def test_where_all_classes_are_rare_their_values_set_the_axis(figures, tmp_path):
    first, second = results()
    gain = bootstrap(first, second, replicates=50, min_boxes=100)
    gain = replace(gain, ap=(gain.ap[0], replace(gain.ap[1], low=-5.0, high=5.0)))
    evaluation.plot_differences(first.names, gain, "t", tmp_path / "x.png", first.npos.tolist())
    low, high = figures[0].axes[0].get_xlim()
    assert low < gain.ap[0].value < gain.ap[1].value < high < 2


def test_curves_of_two_detectors_lie_in_one_panel_with_their_names(figures, tmp_path):
    first, second = results()
    evaluation.plot_compared_curves({"old": first, "new": second}, tmp_path / "x.png")
    panels = [axis for axis in figures[0].axes if axis.lines]
    assert [axis.get_title() for axis in panels] == ["many", "few"]
    assert [len(axis.lines) for axis in panels] == [2, 2]
    texts = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert texts == [f"old: mAP10 {first.map:.4f}", f"new: mAP10 {second.map:.4f}"]


def test_texts_lie_above_low_curves(figures, tmp_path):
    first, _ = results()
    evaluation.plot_curves(first, tmp_path / "x.png")
    evaluation.plot_compared_curves({"old": first}, tmp_path / "x.png")
    for figure in figures:
        high, low = ([text.get_position()[1] for text in axis.texts] for axis in figure.axes[:2])
        assert max(high) < 0.5 < min(low)


def test_what_each_image_adds_to_a_gain():
    """Of one class found without a false hit the gain is made of the images that only one detector finds."""
    boxes = np.tile([[1, 1, 20, 20]], (40, 1))
    first, second = (
        evaluate_voc(
            range(40), [0] * 40, boxes, [0] * 40, range(n), [0] * n, boxes[:n], np.linspace(1, 0.5, n), 1,
            images=np.arange(40),
        )
        for n in (30, 34)
    )  # fmt: skip
    changes = image_changes(first, second)
    assert changes[30:34] == pytest.approx([1 / 40] * 4)
    assert changes[:30] == pytest.approx(0)
    assert changes[34:] == pytest.approx(0)
    assert changes.sum() == pytest.approx(second.ap[0] - first.ap[0])


def test_a_contact_sheet_of_an_image_that_is_gone(tmp_path):
    found = Found(np.array([[1.0, 1, 9, 9]]), ("$cat$ 0.5",), np.array([True]))
    sheet = Sheet(tmp_path / "gone.jpg", "gone: +0.1", (40.0, 30.0), np.array([[1.0, 1, 9, 9]]), (found, found))
    assert plot_contact_sheet([sheet], ("a", "b"), "t", tmp_path / "x.png").stat().st_size > 1000
