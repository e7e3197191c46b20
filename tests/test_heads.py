"""Every architecture that the installed Ultralytics ships, against what its head must hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import ultralytics
from builders import small_model
from torch import nn
from torch.nn.parallel import DataParallel
from ultralytics import YOLO

from yolo_os.errors import UserError
from yolo_os.heads import balance_of, find_head, prediction_layers, unwrap
from yolo_os.integration.architecture import build

ARCHITECTURES = sorted((Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"))
NOT_DETECTORS = ("-cls", "-sem", "-depth")


def expected(head: nn.Module) -> dict[str, tuple[str, int, int]]:
    """Name -> (role, m, n), from the head's own channels and by the class of the head; independent of `heads`."""
    kind = type(head).__name__
    if kind == "RTDETRDecoder":
        layers = {"enc_score_head": ("cls", 256, head.nc), "enc_bbox_head": ("box", 256, 4)}
        for i in range(head.num_decoder_layers):
            layers[f"dec_score_head.{i}"] = ("cls", 256, head.nc)
            layers[f"dec_bbox_head.{i}"] = ("box", 256, 4)
        return layers
    text = kind in ("WorldDetect", "YOLOEDetect", "YOLOESegment", "YOLOESegment26")
    layers = {}
    for branch in ("", "one2one_"):
        if branch and not hasattr(head, "one2one_cv2"):
            continue
        for i in range(head.nl):
            first = head.cv2[0][0].conv.in_channels  # ch[0], from the stem of the first box tower
            layers[f"{branch}cv2.{i}"] = ("box", max(16, first // 4, 4 * head.reg_max), 4 * head.reg_max)
            if not text:
                layers[f"{branch}cv3.{i}"] = ("cls", max(first, min(head.nc, 100)), head.nc)
            if kind in ("Segment", "Segment26"):
                layers[f"{branch}cv4.{i}"] = ("mask", max(first // 4, head.nm), head.nm)
            if kind in ("YOLOESegment", "YOLOESegment26"):
                layers[f"{branch}cv5.{i}"] = ("mask", max(first // 4, head.nm), head.nm)
            if kind in ("OBB", "OBB26"):
                layers[f"{branch}cv4.{i}"] = ("angle", max(first // 4, head.ne), head.ne)
            if kind == "Pose":
                layers[f"{branch}cv4.{i}"] = ("keypoint", max(first // 4, head.nk), head.nk)
            if kind == "Pose26":
                width = max(first // 4, head.kpt_shape[0] * (head.kpt_shape[1] + 2))
                layers[f"{branch}cv4_kpts.{i}"] = ("keypoint", width, head.nk)
                layers[f"{branch}cv4_sigma.{i}"] = ("keypoint", width, head.nk_sigma)
    return layers


@pytest.mark.parametrize(
    "file", [f for f in ARCHITECTURES if not any(n in f.stem for n in NOT_DETECTORS)], ids=lambda f: f.stem
)
def test_every_detector_architecture(file):
    model = build(file)
    head = model.model[-1]
    layers = prediction_layers(model)
    assert {layer.name: (layer.role, layer.in_features, layer.out_features) for layer in layers} == expected(head)
    for layer in layers:
        assert layer.matrix.shape == (layer.in_features, layer.out_features)
        assert layer.refused is None
        if layer.stride is not None:
            assert layer.stride == float(head.stride[layer.level])
    refused = find_head(model).refused
    if type(head).__name__ in ("WorldDetect", "YOLOEDetect", "YOLOESegment", "YOLOESegment26"):
        towers = [name for name in ("cv3", "one2one_cv3") if hasattr(head, name)]
        assert [layer.name for layer in refused] == [f"{tower}.{i}" for tower in towers for i in range(head.nl)]
        assert all("contrastive" in (layer.refused or "") for layer in refused)
    else:
        assert refused == ()


@pytest.mark.parametrize("name", ["yolo11n-cls.yaml", "yolo26n-sem.yaml", "yolo26n-depth.yaml"])
def test_other_heads_are_refused_by_name(name):
    model = build(name)
    with pytest.raises(UserError, match=f"a {type(model.model[-1]).__name__} head has no prediction layers.*supported"):
        prediction_layers(model)


def test_something_that_is_no_model_is_refused():
    with pytest.raises(UserError, match="Linear is no Ultralytics model"):
        prediction_layers(nn.Linear(2, 2))
    with pytest.raises(UserError, match="str is no Ultralytics model"):
        prediction_layers("best.pt")


def test_every_wrapping_gives_the_same_modules():
    yolo = YOLO("yolov8n.yaml")
    bare = yolo.model
    modules = [layer.module for layer in prediction_layers(bare)]
    assert len(modules) == 6
    for wrapped in (yolo, DataParallel(bare), torch.compile(bare), torch.compile(DataParallel(bare))):
        assert all(a is b.module for a, b in zip(modules, prediction_layers(wrapped)))
        assert unwrap(wrapped) is bare


def test_a_ddp_wrapped_model(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        bare = YOLO("yolov8n.yaml").model
        wrapped = nn.parallel.DistributedDataParallel(bare)
        assert [layer.module for layer in prediction_layers(wrapped)] == [
            layer.module for layer in prediction_layers(bare)
        ]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolov10n.yaml", "yolo26n.yaml", "yolo26n-pose.yaml"])
def test_a_fused_model_gives_what_remains(name):
    model = build(name).eval()
    before = {layer.name for layer in prediction_layers(model)}
    after = {layer.name for layer in prediction_layers(model.fuse(verbose=False))}
    assert after
    assert after <= before
    assert len({name.startswith("one2one_") for name in after}) == 1


def test_text_fused_into_a_yoloe_makes_its_class_layers_linear():
    model = build("yoloe-11n.yaml").eval()
    head = model.model[-1]
    head.fuse(torch.nn.functional.normalize(torch.randn(1, 7, head.embed), dim=-1))
    layers = {layer.name: layer for layer in prediction_layers(model)}
    assert layers["cv3.0"].out_features == 7
    assert find_head(model).refused == ()


class Classic(nn.Module):
    """The shape of YOLOv5's anchor-based head."""

    def __init__(self):
        super().__init__()
        self.na, self.nc, self.stride = 3, 20, torch.tensor([8.0, 16.0])
        self.anchors = torch.arange(12.0).view(2, 3, 2)
        self.m = nn.ModuleList(nn.Conv2d(width, 3 * (20 + 5), 1) for width in (64, 128))


def test_the_anchor_based_head():
    model = nn.Module()
    model.model = nn.Sequential(nn.Identity(), Classic())
    head = find_head(model)
    assert [(layer.name, layer.role, layer.in_features, layer.out_features) for layer in head.layers] == [
        ("m.0", "joint", 64, 75),
        ("m.1", "joint", 128, 75),
    ]
    assert prediction_layers(model)[1].layout.sizes == ((6.0, 7.0), (8.0, 9.0), (10.0, 11.0))
    assert [layer.layout.balance for layer in head.layers] == [4.0, 1.0]
    assert [layer.stride for layer in head.layers] == [8.0, 16.0]
    assert head.scorers == {layer.group: layer.module for layer in head.layers}


def test_the_score_of_a_point_of_an_anchor_based_head_is_that_of_its_best_anchor_and_class():
    model = nn.Module()
    model.model = nn.Sequential(Classic())
    outputs = torch.randn(2, 75, 4) * 5
    found = find_head(model).class_logits("1", outputs).sigmoid()
    assert found.shape == (2, 1, 4)
    for image in range(2):
        for point in range(4):
            p = outputs[image, :, point].sigmoid()
            expected = max(float(p[a * 25 + 4] * p[a * 25 + 5 + label]) for a in range(3) for label in range(20))
            assert float(found[image, 0, point]) == pytest.approx(expected, rel=1e-3)
    sure = torch.full((1, 75, 1), 60.0)
    assert torch.isfinite(find_head(model).class_logits("0", torch.cat([sure, -sure]))).all()


@pytest.mark.parametrize("levels", range(1, 8))
def test_every_level_of_an_anchor_based_head_has_a_weight(levels):
    assert len(balance_of(levels)) == levels
    assert balance_of(3) == (4.0, 1.0, 0.4)
    assert balance_of(4) == (4.0, 1.0, 0.25, 0.06)


def test_names_are_found_in_the_model():
    model = build("yolo26n-seg.yaml")
    for layer in prediction_layers(model):
        tower, level = layer.name.rsplit(".", 1)
        assert layer.module is getattr(model.model[-1], tower)[int(level)][-1]


@pytest.mark.parametrize("how", ["prune", "weight_norm", "parametrization", "old weight_norm"])
def test_a_weight_that_is_computed_from_others_is_refused(how):
    from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

    model = small_model("yolo11n")
    layer = model.model[-1].cv3[0][-1]
    if how == "prune":
        prune.l1_unstructured(layer, "weight", 0.5)
    elif how == "weight_norm":
        parametrizations.weight_norm(layer)
    elif how == "old weight_norm":
        weight_norm(layer)
    else:
        parametrize.register_parametrization(layer, "weight", torch.nn.Identity())
    head = find_head(model)
    assert [each.name for each in head.refused] == ["cv3.0"]
    assert "computed from other tensors" in head.refused[0].refused
    assert "cv3.0" not in {each.name for each in head.layers}
