import copy
import json
import math

import pytest
import torch
from builders import FAMILIES, labelled_batch, small_model
from ultralytics import YOLO

from yolo_os import ShiftRecipe, prediction_layers, shift_
from yolo_os.capture import anchors_of, as_columns, capture
from yolo_os.errors import UserError
from yolo_os.loss import training_loss
from yolo_os.plots.shift import plot_report


@pytest.fixture(scope="module")
def untouched():
    return small_model()


@pytest.fixture
def model(untouched):
    return copy.deepcopy(untouched)


@pytest.fixture(scope="module")
def batches(untouched):
    return [labelled_batch(untouched, seed=seed) for seed in range(3)]


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def attributes(model):
    return set(vars(model)) | set(model._modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_shifted_and_otherwise_left_alone(family):
    model = small_model(family)
    model.train()
    model.model[0].eval()  # a mixture of modes must come back as it was
    before, had, modes = state(model), attributes(model), [module.training for module in model.modules()]
    batches = [labelled_batch(model, seed=seed) for seed in range(2)]
    report = shift_(model, batches, ShiftRecipe(method="sos", samples=0.5), held_out=[labelled_batch(model, seed=9)])

    moved = {layer.name for layer in report.moved}
    assert moved
    weights = {id(layer.module.weight): layer.name for layer in prediction_layers(model)}
    by_name = dict(model.named_parameters())
    for name, old in before.items():
        layer = weights.get(id(by_name.get(name)))
        assert torch.equal(old, model.state_dict()[name]) == (layer not in moved), name
    assert attributes(model) == had
    assert [module.training for module in model.modules()] == modes
    assert isinstance(model.args, dict)
    for layer in report.layers:
        assert layer.norm_after <= layer.norm_before * (1 + 1e-6)
        if layer.unchanged:
            assert layer.norm_after == layer.norm_before
        else:
            assert layer.residual < 1e-4
            assert layer.rank <= layer.rows < layer.m
            assert math.isfinite(layer.drift)
    for loss in (report.calibration, report.held_out):
        assert loss.before.keys() == loss.after.keys() >= {"total", "cls"}
        assert all(map(math.isfinite, loss.after.values()))


def test_weights_are_the_least_norm_solution_for_the_features_of_eval_mode(model, batches):
    """End to end against numpy's pseudoinverse, on all rows of a layer with few anchor points."""
    import numpy as np

    layer = prediction_layers(model)[5]  # cv3.2: 3 batches x 4 images x 4 points = 48 rows, m = 80
    before = layer.matrix.double().numpy().copy()
    rows = []
    with torch.no_grad(), capture([layer.module]) as seen:
        for batch in batches:
            model.eval()(batch["img"])
            rows.append(as_columns(seen[layer.module][0]).transpose(1, 2).reshape(-1, 80).double().numpy())
    a = np.concatenate(rows)
    shift_(model, batches, ShiftRecipe(method="os", layers="cv3.2"))
    np.testing.assert_allclose(layer.matrix.numpy(), np.linalg.pinv(a, rcond=80 * 1.2e-7) @ a @ before, atol=1e-6)
    assert np.linalg.norm(layer.matrix.numpy()) < np.linalg.norm(before)


def test_outputs_are_kept_on_the_sample_when_it_is_all_there_is(model, batches):
    image = batches[0]["img"][:1]
    with torch.no_grad():
        before = model.eval()(image)[1]["scores"][..., -4:]  # the four anchor points of the coarsest level
        shift_(model, [image], ShiftRecipe(method="sos", samples=16, sampling="uniform", layers="cv3.2"))
        after = model(image)[1]["scores"][..., -4:]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)


def test_os_with_full_rank_moves_nothing_and_says_so(model, batches):
    before = state(model)
    report = shift_(model, batches, ShiftRecipe(method="os", layers="cv2.0"), held_out=batches[:1])
    (layer,) = (layer for layer in report.layers if layer.name == "cv2.0")
    assert layer.rank == layer.m == 64
    assert "the weights are the only solution" in layer.unchanged
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "Nothing moved" in report.verdict
    assert report.norm_ratio == 1
    assert layer.drift == 0


def test_a_second_shift_on_the_same_rows_changes_nothing(model, batches):
    recipe = ShiftRecipe(method="sos", samples=0.5, sampling="uniform")
    shift_(model, batches, recipe)
    before = [layer.matrix.clone() for layer in prediction_layers(model)]
    report = shift_(model, batches, recipe)
    assert report.norm_ratio == pytest.approx(1, abs=1e-6)
    for old, layer in zip(before, prediction_layers(model)):
        torch.testing.assert_close(layer.matrix, old, atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_weights(untouched, batches):
    def weights(seed):
        model = copy.deepcopy(untouched)
        shift_(model, batches, ShiftRecipe(method="sos", seed=seed))
        return torch.cat([layer.matrix.flatten() for layer in prediction_layers(model)])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_parameters_are_edited_in_place(model, batches):
    parameters = [id(parameter) for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shift_(model, batches)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert optimizer.param_groups[0]["params"][0] is next(model.parameters())
    assert all(parameter.requires_grad for layer in prediction_layers(model) for parameter in layer.module.parameters())


def test_the_loss_is_the_models_own(model, batches):
    """Against the model's criterion called by hand."""
    report = shift_(copy.deepcopy(model), batches, held_out=batches[:1])
    from types import SimpleNamespace

    model.args = SimpleNamespace(**model.args)
    with torch.no_grad():
        model.eval()
        totals = [model.loss(batch, model(batch["img"]))[0].sum() / len(batch["img"]) for batch in batches]
    assert report.calibration.before["total"] == pytest.approx(float(sum(totals) / 3), rel=1e-5)
    assert report.held_out.before["total"] == pytest.approx(float(totals[0]), rel=1e-5)
    assert report.held_out.images == 4


def test_report_takes_the_loss_after_from_the_shifted_weights(model, batches):
    report = shift_(model, batches, ShiftRecipe(method="sos", samples=1, sampling="uniform"), held_out=batches[:1])
    again = shift_(copy.deepcopy(model), batches, ShiftRecipe(method="sos", samples=63), held_out=batches[:1])
    assert again.held_out.before["total"] == pytest.approx(report.held_out.after["total"], rel=1e-5)
    assert report.held_out.after["total"] != report.held_out.before["total"]


def test_unlabelled_images_suffice_and_the_report_says_what_is_missing(model):
    images = [torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)]
    report = shift_(model, images, ShiftRecipe(method="sos", sampling="balanced"))
    assert report.moved
    assert {layer.sampling for layer in report.moved} == {"foreground"}
    assert report.loss.rise is None
    assert any("no training loss" in warning for warning in report.warnings)
    assert any("no images were held out" in warning for warning in report.warnings)
    assert "unknown" in report.verdict


def test_a_yolo_from_a_file_has_its_loss_and_its_guard(detector, digits):
    """Ultralytics keeps the gains of the loss in the checkpoint, not on the model."""
    yolo = YOLO(detector)
    args = dict(yolo.model.args)
    report = shift_(yolo, digits, ShiftRecipe(images=16, held_out=8))
    assert report.held_out.before["total"] == pytest.approx(3.2, abs=1.0)
    assert report.trials[0].rise is not None
    assert yolo.model.args == args


def test_images_without_any_object_give_no_loss(model, batches):
    empty = [
        {**batch, "cls": batch["cls"][:0], "bboxes": batch["bboxes"][:0], "batch_idx": batch["batch_idx"][:0]}
        for batch in batches
    ]
    report = shift_(model, empty, held_out=empty)
    assert report.loss.rise is None
    assert any("no labelled objects" in warning for warning in report.warnings)


def test_layers_can_be_named_exactly():
    model = small_model("rtdetr-l")
    report = shift_(model, [labelled_batch(model)], ShiftRecipe(method="sos", layers="enc_score_head"))
    assert [layer.name for layer in report.moved] == ["enc_score_head"]


def test_one_batch_needs_no_list(model, batches):
    assert shift_(model, batches[0]).calibration.images == 4
    assert shift_(model, batches[0]["img"]).moved


def test_weights_are_rounded_as_they_will_be_stored(model, batches):
    shift_(model, batches, precision=torch.float16)
    for layer in prediction_layers(model):
        for tensor in (layer.module.weight, layer.module.bias):
            assert torch.equal(tensor, tensor.half().float())


def test_a_loss_that_is_no_number_is_harm(model, batches):
    from dataclasses import replace

    report = shift_(model, batches, held_out=batches[:1])
    broken = replace(report.held_out, after={"total": math.nan})
    assert "does harm" in replace(report, held_out=broken).verdict


def test_the_guard_runs_the_whole_model_where_its_features_would_not_fit(untouched, batches, monkeypatch):
    recipe = ShiftRecipe(keep=0.5)
    kept = shift_(copy.deepcopy(untouched), batches, recipe, held_out=batches)
    monkeypatch.setattr("yolo_os.forward.CACHE_SHARE", 1e-9)
    again = shift_(copy.deepcopy(untouched), batches, recipe, held_out=batches)
    assert again.trials[0].rise == pytest.approx(kept.trials[0].rise, abs=1e-6)


def test_a_guard_without_a_loss_says_that_it_did_not_guard(model):
    report = shift_(model, [torch.rand(2, 3, 64, 64)], held_out=[torch.rand(2, 3, 64, 64)])
    assert report.moved
    assert any("was not guarded" in warning for warning in report.warnings)


def test_labels_reach_the_sampling(model, batches):
    report = shift_(model, batches, ShiftRecipe(method="sos", sampling="balanced"))
    assert {layer.sampling for layer in report.moved} == {"balanced"}


def test_assigned_labels_are_those_of_the_batch(model, batches):
    from yolo_os.heads import find_head

    head, batch = find_head(model), batches[0]
    with training_loss(model) as loss, torch.no_grad(), capture(head.scorers.values()) as seen:
        loss(batch, model.eval()(batch["img"]))
        anchors = anchors_of(head, seen, loss.labels)
    assert [tuple(anchors[group].label.shape) for group in "012"] == [(4, 64), (4, 16), (4, 4)]
    for image in range(4):
        given = set(batch["cls"][batch["batch_idx"] == image].flatten().long().tolist())
        assigned = {int(label) for group in "012" for label in anchors[group].label[image]} - {-1}
        assert assigned
        assert assigned <= given


def test_fewer_rows_than_classes_is_a_warning(model, batches):
    report = shift_(model, batches, ShiftRecipe(method="sos", samples=5, layers="cls"))
    assert any(
        "fewer rows than classes" in warning and "cv3.0 (5 rows, 80 outputs)" in warning for warning in report.warnings
    )


def test_a_layer_whose_m_is_not_larger_than_the_sample_is_skipped(model, batches):
    report = shift_(model, batches, ShiftRecipe(method="sos", samples=70))
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["cv2.0"].skipped == "a sample of 70 rows is not smaller than m = 64: nothing to shift"
    assert by_name["cv3.0"].skipped is None


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (ShiftRecipe(method="sos", samples=80), "no layer is left to shift: cv2.0: a sample of 80 rows"),
        (ShiftRecipe(layers="mask"), "layers=mask selects no layer of this Detect head: it has cv2.0 \\(box\\)"),
        (ShiftRecipe(layers="cv9.*"), r"layers=cv9\.\* names no layer"),
        (ShiftRecipe(layers="cls,boxes"), "layers=boxes names no layer of this Detect head and no role"),
    ],
)
def test_recipes_that_could_do_nothing_are_refused(model, batches, recipe, message):
    with pytest.raises(UserError, match=message):
        shift_(model, batches, recipe)


def test_refused_layers_are_named_when_asked_for():
    model = small_model("yolov8n-worldv2")
    with pytest.raises(UserError, match=r"cv3\.0 is refused: its outputs are embeddings"):
        shift_(model, [labelled_batch(model)], ShiftRecipe(layers="cls"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_named(model, batches, bad):
    model.model[3].conv.weight.data[0, 0, 0, 0] = bad
    with pytest.raises(UserError, match=r"not finite: model\.3\.conv\.weight"):
        shift_(model, batches)


def test_broken_features_are_refused_and_nothing_moves(model):
    before = state(model)
    with pytest.raises(UserError, match=r"layer cv\d\.\d: .*NaN or infinity"):
        shift_(model, [torch.full((1, 3, 64, 64), float("nan"))])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_data_that_cannot_be_used(model, batches):
    with pytest.raises(UserError, match="gone through more than once"):
        shift_(model, iter(batches))
    with pytest.raises(UserError, match="holds no images"):
        shift_(model, [])
    with pytest.raises(UserError, match="a batch has no images: its keys are cls"):
        shift_(model, [{"cls": torch.zeros(1)}])


def test_an_interruption_after_the_shift_puts_the_weights_back(model, batches):
    before, norms = state(model), []

    def interrupted(batches, title):
        if title == "loss after":
            norms.append(float(prediction_layers(model)[0].matrix.norm()))
            raise KeyboardInterrupt
        return batches

    with pytest.raises(KeyboardInterrupt):
        shift_(model, batches, progress=interrupted)
    assert norms[0] < float(before["model.22.cv2.0.2.weight"].norm())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_reported_is_what_a_file_of_that_precision_will_hold(model, batches):
    model.half().float()  # as read from a checkpoint, so that of the biases none is rounded anew
    report = shift_(model, batches, ShiftRecipe(method="sos"), precision=torch.float16)
    assert report.precision == "float16"
    read_back = copy.deepcopy(model).half().float()
    norms = [float(layer.matrix.double().norm()) for layer in prediction_layers(read_back)]
    assert [layer.norm_after for layer in report.layers] == norms
    assert all(1e-6 < layer.residual < 1e-2 for layer in report.moved)  # rounding shows


def test_a_fused_model_is_shifted_without_its_loss():
    model = small_model("yolo26n").eval()
    model.model[-1].end2end = True
    report = shift_(model.fuse(verbose=False), [labelled_batch(model)])
    assert {layer.name[:7] for layer in report.moved} == {"one2one"}
    assert not report.calibration.before
    model = small_model("yolo11n").eval().fuse(verbose=False)
    assert shift_(model, [labelled_batch(model)]).calibration.before


def test_wrapped_models_and_half_batches(batches):
    yolo = YOLO("yolov8n.yaml")
    report = shift_(yolo, batches)
    assert report.calibration.before["total"] > 0
    compiled = torch.compile(small_model())
    assert shift_(compiled, [batch["img"].half() for batch in batches]).moved


def test_the_report_prints_and_saves(model, batches, tmp_path):
    report = shift_(model, batches, ShiftRecipe(method="sos", layers="cls"), held_out=batches[:1])
    text = str(report)
    for expected in (
        "cv3.0",
        "rank",
        "drift",
        "unchanged: not selected by layers=cls",
        "held-out images",
        report.verdict,
    ):
        assert expected in text
    report.save(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["keep"] == pytest.approx(report.keep)
    assert read["norm_ratio"] == pytest.approx(report.keep**0.5)  # the name of before, still there
    assert read["loss_before"] == pytest.approx(report.held_out.before["total"])
    assert read["layers"][0]["unchanged"] == read["layers"][0]["skipped"] == "not selected by layers=cls"
    assert read["layers"][3].keys() >= {
        "name",
        "role",
        "m",
        "n",
        "rank",
        "norm_before",
        "norm_after",
        "residual",
        "drift",
    }
    before = math.hypot(*(layer["norm_before"] for layer in read["layers"]))
    assert read["norm_ratio"] == pytest.approx(math.hypot(*(layer["norm_after"] for layer in read["layers"])) / before)
    for path in plot_report(report, tmp_path):
        assert path.stat().st_size > 10_000
        assert path.read_bytes().startswith(b"\x89PNG")


def test_no_number_is_written_as_nan(model, tmp_path):
    report = shift_(model, [torch.rand(1, 3, 64, 64)])
    report.save(tmp_path / "report.json")
    assert "NaN" not in (tmp_path / "report.json").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["loss_before"] is None


def test_memory_is_bounded_whatever_the_number_of_images(model):
    from yolo_os.statistics import Anchors, Gram, RowSample

    sample, gram = RowSample(10, "uniform", 0, "x"), Gram()
    for _ in range(20):
        features = torch.randn(4, 8, 100)
        sample.add(features, features, Anchors())
        gram.add(features, features, Anchors())
        assert sample.rows.shape == (10, 8)
        assert sample.rows.untyped_storage().nbytes() == 10 * 8 * 4  # a copy, not a view of the batch
        assert gram.matrix.shape == (8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(
    "recipe",
    [
        ShiftRecipe(method="os", layers="cv3.2"),
        ShiftRecipe(method="budget", max_loss_rise=None),
        *(ShiftRecipe(method="sos", samples=0.5, sampling=each) for each in ("uniform", "foreground", "balanced")),
    ],
    ids=lambda recipe: f"{recipe.method}-{recipe.sampling}",
)
def test_on_a_gpu_the_weights_are_those_of_the_cpu(recipe, untouched, batches):
    cpu, gpu = copy.deepcopy(untouched), copy.deepcopy(untouched).cuda()
    shift_(cpu, batches, recipe)
    shift_(gpu, batches, recipe)
    for a, b in zip(prediction_layers(cpu), prediction_layers(gpu)):
        torch.testing.assert_close(a.matrix, b.matrix.cpu(), atol=1e-3, rtol=1e-3)
