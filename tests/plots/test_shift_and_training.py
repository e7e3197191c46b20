"""What stands in the pictures of a shift and of a training."""

import json

import pytest

from yolo_os.methods.base import Moved, Unchanged
from yolo_os.plots import shift as shift_plots
from yolo_os.plots import training as training_plots
from yolo_os.recipe import ShiftRecipe
from yolo_os.report import LayerReport, LossReport, ShiftReport


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Figures, in place of files."""
    figures = []
    for module in (shift_plots, training_plots):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def texts(axis):
    return [text.get_text() for text in axis.texts]


def legend_of(figure):
    (legend,) = figure.legends
    assert not [axis for axis in figure.axes if axis.get_legend()]
    return [text.get_text() for text in legend.get_texts()]


def test_layers_have_their_names_and_values_however_small(drawn, tmp_path):
    layers = tuple(
        LayerReport(
            f"cv{2 + number % 2}.{number}",
            ("box", "cls")[number % 2],
            0,
            8.0,
            64,
            64,
            10.0,
            10 * keep**0.5,
            residual=1e-4,
            drift=0.02,
            outcome=Unchanged("full rank") if keep == 1 else Moved(),
        )
        for number, keep in enumerate([0.001, 0.5, 1.0, *[0.8] * 11])
    )
    loss = LossReport(1, {}, {})
    shift_plots.plot_layers(ShiftReport(ShiftRecipe(), layers, loss, loss, "float16", {}), tmp_path / "x.png")
    left, right = drawn[0].axes
    assert texts(left)[:3] == ["0.001", "0.500", "1.000"]
    assert len(left.get_yticklabels()) == 14
    assert texts(right).count("0.0001") == texts(right).count("0.02") == 14
    assert legend_of(drawn[0]) == ["box", "cls", "unchanged", "held-out drift", "residual in sample"]


def test_a_training_shows_its_final_shift_the_limit_and_one_legend(drawn, tmp_path):
    (tmp_path / "results.csv").write_text(
        "epoch,train/box_loss,val/box_loss,os/norm,os/norm_ema\n1,2,3,10,10\n2,1,2,8,9\n3,1,2,8,8\n"
    )
    (tmp_path / "shifts.csv").write_text(
        "step,epoch,reverted,note,loss_before,loss_after\n5,2,0,,2,1.99\n9,3,1,,2,2.1\n"
    )
    (tmp_path / "os/best").mkdir(parents=True)
    (tmp_path / "os/settings.yaml").write_text("max_loss_rise: 0.002\n")
    report = {"keep": 0.49, "layers": [{"norm_before": 9, "norm_after": 6.3}], "loss_before": 2, "loss_after": 2.002}
    (tmp_path / "os/best/report.json").write_text(json.dumps(report))
    for taken, label in ((True, "left"), (False, "left (not taken)")):
        (tmp_path / "os/best/val.json").write_text(json.dumps({"taken": taken}))
        training_plots.plot_training(tmp_path, tmp_path / "x.png")
        assert set(legend_of(drawn[-1])) == {
            "norm of the model", "norm of the average (saved)", "train loss", "val loss", "shift that stands (1)",
            "shift reverted (1)", "limit of the guard (0.2%)",
            f"final shift of best.pt, 49% of the squared norm {label}",
        }  # fmt: skip
    norm, _, rise = drawn[-1].axes
    stars = [line for axis in (norm, rise) for line in axis.lines if line.get_marker() == "*"]
    assert [line.get_xydata().tolist() for line in stars] == [[[2.0, 6.3]], [[2.0, pytest.approx(0.1)]]]
