"""Towards an origin: what moves, how far, and which share is taken; on small models and made-up figures."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from builders import small_model

from yolo_os.errors import UserError
from yolo_os.evaluation.voc import evaluate_voc
from yolo_os.heads import prediction_layers
from yolo_os.plots.toward import plot_shares
from yolo_os.toward import STAY, Judged, Origin, Step, choose, line_to, move_toward_, named_tensors

CLASSES = tuple("abcdefghij")


def with_classes(model, classes=CLASSES):
    model.names = dict(enumerate(classes))
    return model


@pytest.fixture(scope="module")
def pair(request):
    """A model with ten classes and another that it is taken to have started from."""
    from conftest import DIGITS

    model, start = (with_classes(small(DIGITS, seed)) for seed in (0, 1))
    for seed, each in enumerate((model, start)):
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in named_tensors(each).items():
            if not tensor.is_floating_point():
                tensor.fill_(seed + 3)
            elif "dfl" not in name:  # BatchNorm layers begin alike
                tensor.data = tensor.data + 0.1 * torch.rand(tensor.shape, generator=generator)
    return model, start


def small(folder, seed):
    from yolo_os.integration.architecture import build

    torch.manual_seed(seed)
    model = build(folder / "detector.yaml")
    model.task = "detect"
    return model.eval()


@pytest.fixture
def model(pair):
    return copy.deepcopy(pair[0])


@pytest.fixture
def start(pair):
    return copy.deepcopy(pair[1])


def origin_of(model, classes=None, task="detect"):
    return Origin(named_tensors(model), tuple(classes or model.names.values()), task, "old.pt")


def result(hits, images=200, seed=None):
    """VOC figures of one box on each image, found on a share `hits` of them."""
    order = np.arange(images) if seed is None else np.random.default_rng(seed).permutation(images)
    found = order[: round(hits * images)]
    boxes = np.tile([1.0, 1.0, 10.0, 10.0], (images, 1))
    scores = np.full(len(found), 0.5)
    every = np.arange(images)
    return evaluate_voc(
        every, np.zeros(images), boxes, np.zeros(images), found, np.zeros(len(found)), boxes[: len(found)], scores, 1,
        images=every,
    )  # fmt: skip


def judged(**maps):
    """`choose`'s input: by share, mAP on the new data, or on the new and a retained set."""
    table = {}
    for name, values in maps.items():
        new, *old = values if isinstance(values, tuple) else (values,)
        share = float(name[1:]) / 10
        table[Step(share)] = {"new": Judged(result(new)), **({"old": Judged(result(old[0]))} if old else {})}
    return table


# What moves.


def test_the_ends_are_bit_for_bit_the_model_and_the_origin(model, start):
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    line = line_to(model, origin_of(start))
    for share, ends in ((1, before), (0, named_tensors(start))):
        for name, value in line.values(share).items():
            assert torch.equal(value, ends[name]), name
    assert line.complete
    assert {each.name for each in line.stayed} == {
        name for name, each in before.items() if not each.is_floating_point()
    } | {f"{line.head}.dfl.conv.weight"}


def test_statistics_can_stay_while_the_weights_move(model, start):
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    report = move_toward_(line_to(model, origin_of(start)), judge_that_takes(0.5), shares=[0.5], statistics=False)
    statistics = {name for name in before if name.endswith(("running_mean", "running_var"))}
    changed = {name for name, tensor in named_tensors(model).items() if not torch.equal(tensor, before[name])}
    assert statistics and changed and not changed & statistics
    assert {each.name for each in report.stayed if "BatchNorm statistics stay" in each.reason} == statistics
    assert [trial.share for trial in report.tried] == [1.0, 0.5, 0.0]
    assert not report.statistics and not report.otherwise
    assert "BatchNorm statistics left as trained" in report.verdict


@pytest.mark.parametrize("moved", [True, False])
def test_what_the_images_say_of_the_statistics_is_done(model, start, moved):
    """Both ways are judged at every share; where they do equally well, the statistics move."""
    names = {name for name in named_tensors(model) if name.endswith(("running_mean", "running_var"))}
    before = {name: named_tensors(model)[name].clone() for name in names}

    def judge():
        now = named_tensors(model)
        left = all(torch.equal(now[name], before[name]) for name in names)
        weights_moved = not torch.equal(now["model.0.conv.weight"], kept)
        return {"new": Judged(result(0.3 if not weights_moved else 0.5 if left == moved else 0.8))}

    kept = named_tensors(model)["model.0.conv.weight"].clone()
    report = move_toward_(line_to(model, origin_of(start)), judge, shares=[0.8, 0.5])
    assert (report.share, report.statistics) == (0.5, moved)
    assert [trial.share for trial in report.tried] == [1.0, 0.8, 0.5, 0.0]
    assert [(trial.share, trial.statistics) for trial in report.otherwise] == [(0.8, not moved), (0.5, not moved)]
    changed = {name for name in names if not torch.equal(named_tensors(model)[name], before[name])}
    assert changed == (names if moved else set())
    assert {each.name for each in report.moved} & names == (names if moved else set())
    content = report.to_dict()["toward"]
    assert (content["statistics"], len(content["tried"]), len(content["otherwise"])) == (moved, 4, 2)


def test_without_statistics_on_the_line_there_is_one_way(model, start):
    """Asked for or not, what was judged is listed as tried, also where nothing moves."""
    for name, tensor in named_tensors(start).items():
        if name.endswith(("running_mean", "running_var")):
            tensor.copy_(named_tensors(model)[name])
    for hits in ([0.8, 0.6, 0.3], [0.3, 0.8, 0.3]):
        looks = iter(hits)
        line = line_to(copy.deepcopy(model), origin_of(start))
        judge = lambda looks=looks: {"new": Judged(result(next(looks)))}  # noqa: E731
        report = move_toward_(line, judge, shares=[0.5], statistics=False)
        assert report.statistics and not report.otherwise
        assert [trial.share for trial in report.tried] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(("left", "taken"), [(0.60, True), (0.61, True), (0.80, False)])
def test_where_leaving_the_statistics_gains_no_more_than_a_standard_error_they_move(left, taken):
    """Moved, they are nearer to the origin. What the two find lies on other images, so 0.01 may be chance."""
    table = {STAY: {"new": Judged(result(0.3))}, Step(0.5): {"new": Judged(result(0.6, seed=1))}}
    table[Step(0.5, False)] = {"new": Judged(result(left))}
    assert choose(table)[0] == Step(0.5, taken)


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_between_them_weights_and_statistics_are_interpolated_and_counts_stay(model, start, share):
    identities = {name: id(tensor) for name, tensor in named_tensors(model).items()}
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    move_toward_(line_to(model, origin_of(start)), judge_that_takes(share), shares=[share])
    after = named_tensors(model)
    assert {name: id(tensor) for name, tensor in after.items()} == identities
    for name, old in named_tensors(start).items():
        if old.is_floating_point():
            wanted = (old.double() + share * (before[name].double() - old.double())).float()
            assert torch.equal(after[name], wanted), name
        else:
            assert torch.equal(after[name], before[name]), name
    assert any(name.endswith("running_var") and not torch.equal(after[name], before[name]) for name in after)


def judge_that_takes(share, fine=0.9, poor=0.2):
    """A judge that finds the model poor, and better at every later look."""
    looks = iter([poor, *[fine] * 50])
    return lambda: {"new": Judged(result(next(looks)))}


def test_values_are_rounded_to_the_precision_of_the_file(model, start):
    report = move_toward_(
        line_to(model, origin_of(start)), judge_that_takes(0.5), shares=[0.5], precision=torch.float16
    )
    assert report.precision == "float16"
    for name in (each.name for each in report.moved):
        tensor = named_tensors(model)[name]
        assert torch.equal(tensor, tensor.half().float()), name


def test_classes_in_another_order_are_matched_by_name(model, start):
    order = [3, 1, 4, 0, 9, 2, 6, 5, 8, 7]
    line = line_to(model, origin_of(start, [CLASSES[index] for index in order]))
    with torch.no_grad():
        for name, value in line.values(0).items():
            line.tensors[name].copy_(value)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        mine, theirs = model(image)[0], start(image)[0]
    assert torch.equal(mine[:, :4], theirs[:, :4])
    for place, index in enumerate(order):  # the origin's output number `place` is the class CLASSES[index]
        assert torch.equal(mine[:, 4 + index], theirs[:, 4 + place])
    assert line.complete


@pytest.mark.parametrize("classes", ["klmnopqrst", "abcdefghik", "aabbccddee"])
def test_outputs_of_other_classes_stay_and_the_rest_moves(model, start, classes):
    line = line_to(model, origin_of(start, classes))
    layers = {f"{line.head}.{each.name}" for each in prediction_layers(model) if each.role == "cls"}
    stayed = {each.name: each.reason for each in line.stayed if "classes" in each.reason}
    assert {name.rsplit(".", 2)[0] for name in stayed} == layers
    assert not line.complete
    assert any(name.startswith(line.head) for name in line.tensors)
    report = move_toward_(line, judge_that_takes(0.5), shares=[0.5])
    assert [trial.share for trial in report.tried] == [1.0, 0.5]  # share 0 would be a network of two halves
    assert any("stays as trained" in warning for warning in report.warnings)


def test_a_head_of_another_size_stays_with_its_reason(model):
    other = with_classes(small_model("yolov8n"), range(80))
    narrow = with_classes(copy.deepcopy(model), "abc")
    for layer in prediction_layers(narrow):
        if layer.role == "cls":
            layer.module.weight.data = layer.module.weight.data[:3]
            layer.module.bias.data = layer.module.bias.data[:3]
    narrow.model[0].conv.weight.data.add_(1)
    line = line_to(model, origin_of(narrow))
    assert sum(each.reason == "the origin's has another shape" for each in line.stayed) == 6
    assert list(line.tensors) == ["model.0.conv.weight"]
    with pytest.raises(UserError, match=r"another architecture: \d+ of the model's \d+ tensors"):
        line_to(model, origin_of(other))


def test_rtdetr_embeds_its_labels_in_the_order_of_the_classes():
    model = small_model("rtdetr-l")
    start = copy.deepcopy(model)
    names = list(model.names.values())
    with torch.no_grad():
        for tensor in named_tensors(start).values():
            if tensor.is_floating_point():
                tensor.add_(1)
    line = line_to(model, origin_of(start, names[::-1]))
    name = f"{line.head}.denoising_class_embed.weight"
    assert torch.equal(line.origin[name], named_tensors(start)[name].flip(0))
    bias = f"{line.head}.enc_score_head.bias"
    assert torch.equal(line.origin[bias], named_tensors(start)[bias].flip(0))


def test_what_the_training_froze_is_named(model, start):
    start.model[0].conv.weight.data.copy_(model.model[0].conv.weight)
    line = line_to(model, origin_of(start))
    assert {each.name: each.reason for each in line.stayed}[
        "model.0.conv.weight"
    ] == "it did not change in the training"
    assert "model.0.conv.weight" not in line.tensors


def nan(model):
    next(model.parameters()).data.fill_(float("nan"))


BAD = {
    "another architecture": (
        lambda model, start: origin_of(with_classes(small_model("yolo11n"))),
        "another architecture",
    ),
    "another task": (lambda model, start: origin_of(start, task="segment"), "a model of the task 'segment', and this"),
    "the same weights": (lambda model, start: origin_of(copy.deepcopy(model)), "its weights are those of the model"),
    "origin not finite": (
        lambda model, start: (nan(start), origin_of(start))[1],
        "the origin's weights are not finite",
    ),
    "model not finite": (lambda model, start: (nan(model), origin_of(start))[1], "the model's weights are not finite"),
    "fused origin": (lambda model, start: origin_of(start.fuse(verbose=False)), "toward=old.pt: it is fused"),
    "fused model": (lambda model, start: (model.fuse(verbose=False), origin_of(start))[1], "the model is fused"),
    "channels": (lambda model, start: origin_of(grey(start)), "images of 1 channels, and the model of 3"),
}


def grey(model):
    weight = model.model[0].conv.weight
    weight.data = weight.data[:, :1]
    return model


@pytest.mark.parametrize("case", BAD)
def test_an_origin_that_does_not_belong_is_refused_in_a_line(model, start, case):
    make, message = BAD[case]
    origin = make(model, start)
    with pytest.raises(UserError, match=message) as error:
        line_to(model, origin, "detect")
    assert "\n" not in str(error.value)


# Which share.


def test_nothing_moves_where_staying_is_best(model, start):
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    looks = iter([0.8, 0.7, 0.6, 0.7, 0.6, 0.5])
    report = move_toward_(
        line_to(model, origin_of(start)), lambda: {"new": Judged(result(next(looks)))}, shares=[0.8, 0.5]
    )
    assert report.share == 1
    assert not report.moved
    assert {each.name for each in report.stayed} == before.keys()
    assert "Nothing moved: no share beats staying" in str(report)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model).items())


def test_without_any_lead_nothing_moves():
    assert choose(judged(s10=0.5, s5=0.5, s2=0.5))[0].share == 1
    assert choose(judged(s10=0.0, s5=0.0, s2=0.0))[0].share == 1
    assert choose(judged(s10=0.5, s5=0.51, s2=0.4))[0].share == 0.5


def test_the_largest_step_within_one_standard_error_of_the_best():
    table = judged(s10=0.40, s8=0.70, s5=0.69, s2=0.50, s0=0.95)
    table[Step(0.5)] = {"new": Judged(result(0.69, seed=1))}  # on other images than 0.8 finds, so 0.01 may be chance
    step, why = choose(table)
    assert step.share == 0.5
    assert "within one standard error of the best" in why
    assert choose(judged(s10=0.40, s8=0.70, s5=0.50, s2=0.30, s0=0.2))[0].share == 0.8


def test_the_origin_itself_is_never_taken():
    assert choose(judged(s10=0.40, s5=0.50, s0=0.90))[0].share == 0.5


def test_retained_data_decide_only_where_a_drop_is_given():
    table = judged(s10=(0.60, 0.3), s8=(0.80, 0.5), s5=(0.60, 0.7), s2=(0.50, 0.78), s0=(0.3, 0.8))
    assert choose(table)[0].share == 0.8
    assert choose(table, retain_drop=0.5)[0].share == 0.8
    assert choose(table, retain_drop=0.15)[0].share == 0.5
    assert choose(table, retain_drop=0.05)[0].share == 0.2  # although it costs mAP on the new data: staying is out
    step, why = choose(table, retain_drop=0.01)
    assert step.share == 1
    assert "every share loses more than retain_drop=0.01" in why


def test_no_objects_no_choice():
    nothing = Judged(evaluate_voc([], [], [], [], [], [], [], [], 1, images=[0, 1]))
    assert choose({STAY: {"new": nothing}, Step(0.5): {"new": nothing}})[0].share == 1


@pytest.mark.parametrize("shares", [[], [0.0], [1.0], [1.5], [True], ["half"], 1.5, True])
def test_shares_are_between_the_ends(model, start, shares):
    with pytest.raises(UserError, match="shares="):
        move_toward_(line_to(model, origin_of(start)), judge_that_takes(0.5), shares=shares)


def test_a_single_share_needs_no_list(model, start):
    assert move_toward_(line_to(model, origin_of(start)), judge_that_takes(0.5), shares=0.5).share == 0.5


def test_an_interruption_puts_the_weights_back(model, start):
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    looks = iter(range(3))

    def judge():
        if next(looks) == 2:
            raise KeyboardInterrupt
        return {"new": Judged(result(0.5))}

    with pytest.raises(KeyboardInterrupt):
        move_toward_(line_to(model, origin_of(start)), judge, shares=[0.8, 0.5])
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model).items())


# The report.


def test_the_report_says_all_of_it(model, start, tmp_path):
    looks = iter(
        [(0.4, 0.3), (0.7, 0.5), (0.5, 0.6), (0.6, 0.5), (0.5, 0.6), (0.2, 0.8)]
    )  # the fourth: statistics left

    def judge():
        new, old = next(looks)
        return {"new": Judged(result(new), result(new / 2), 1.5, ("rare",)), "old.yaml": Judged(result(old))}

    line = line_to(model, origin_of(start))
    distance = line.distances()
    report = move_toward_(line, judge, shares=[0.5, 0.8], retain_drop=0.4)
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())["toward"]
    assert content["share"] == 0.8
    assert [trial["share"] for trial in content["tried"]] == [1.0, 0.8, 0.5, 0.0]
    taken = content["tried"][1]
    assert taken["map"] == pytest.approx(0.7)
    assert taken["loss"] == 1.5
    assert taken["gain"]["value"] == pytest.approx(0.3)
    assert taken["gain"]["low"] < 0.3 < taken["gain"]["high"]
    assert taken["retained"]["old.yaml"]["map"] == pytest.approx(0.5)
    assert taken["retained"]["old.yaml"]["gain"]["value"] == pytest.approx(0.2)
    assert content["tried"][0]["gain"] is None
    assert taken["distance"] == pytest.approx(0.8 * content["tried"][0]["distance"])
    for each in content["moved"]:
        assert each["before"] == pytest.approx(distance[each["name"]])
        assert each["after"] == pytest.approx(0.8 * each["before"], rel=1e-4)
    assert {each["name"] for each in content["moved"]} | {each["name"] for each in content["stayed"]} == {
        *named_tensors(model)
    }
    assert content["unused"]["images"] == 200
    assert content["unused"]["map"] == pytest.approx(0.35)
    text = str(report)
    assert "<- taken" in next(row for row in text.splitlines() if row.startswith("   0.8"))
    assert text.index("BatchNorm statistics moved") < text.index("<- taken") < text.index("BatchNorm statistics left")
    assert "On 200 val images that no decision used, mAP 0.2000 -> 0.3500" in report.verdict
    assert "old.yaml 0.3000 -> 0.5000" in report.verdict
    assert "1 classes have too few val boxes" in text
    assert plot_shares(report.to_dict()["toward"], tmp_path / "toward.png").stat().st_size > 10_000


def test_figures_of_the_images_chosen_on_are_called_that(model, start):
    report = move_toward_(line_to(model, origin_of(start)), judge_that_takes(0.5), shares=[0.5])
    assert report.unused is None
    assert report.to_dict()["toward"]["unused"] is None
    assert "On the 200 val images that the share was chosen on" in report.verdict
    assert any("too few to set some apart" in warning for warning in report.warnings)
