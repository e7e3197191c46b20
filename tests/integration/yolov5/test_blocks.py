"""A classic YOLOv5 built from its configuration computes what the classes that wrote the file compute."""

import classic
import pytest
import torch
from builders import small_model
from classic import one_block, stand_in, write_classic
from torch import nn

from yolo_os.errors import UserError
from yolo_os.heads import find_head
from yolo_os.integration import yolov5
from yolo_os.integration.checkpoint import load_checkpoint

IMAGE = (2, 3, 32, 64)


def image(seed=0):
    return torch.rand(IMAGE, generator=torch.Generator().manual_seed(seed)).double()


def close(found, expected):
    """In float64: rounding in another order is far below any mistake."""
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("version", "nc"), [("v5.0", 3), ("v6.0", 7), ("v7.0", 1), ("P6", 2)])
@pytest.mark.parametrize("half", [True, False])
def test_a_file_of_every_version_gives_the_outputs_of_who_wrote_it(tmp_path, version, nc, half):
    model = classic.classic(tmp_path / "a.pt", version, nc, half=half)
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.precision == (torch.float16 if half else torch.float32)
    with torch.no_grad():
        expected, raw = model.double()(image())
        found, own = checkpoint.model.double()(image())
        trained = checkpoint.model.train()(image())
    close(found, expected)
    for theirs, mine in zip(raw, own, strict=True):
        close(mine, theirs)
    assert [each.shape for each in trained] == [each.shape for each in raw]
    head = find_head(checkpoint.model)
    assert [layer.name for layer in head.layers] == [f"m.{i}" for i in range(len(raw))]
    assert [layer.stride for layer in head.layers] == model.stride.tolist()
    assert {layer.out_features for layer in head.layers} == {3 * (nc + 5)}
    names = model.names if isinstance(model.names, list) else list(model.names.values())
    assert checkpoint.model.names == dict(enumerate(names))


BLOCKS = {
    "Bottleneck": (classic.Bottleneck(8, 8), [8], 8, 1),
    "Bottleneck wider": (classic.Bottleneck(8, 16), [16], 16, 1),
    "BottleneckCSP": (classic.BottleneckCSP(8, 16, 1), [16], 16, 1),
    "C3": (classic.C3(8, 16, 1, False), [16, False], 16, 1),
    "C3x": (classic.C3x(8, 16), [16], 16, 1),
    "C3TR": (classic.C3TR(8, 32), [32], 32, 1),
    "C3SPP": (classic.C3SPP(8, 16, (3, 5)), [16, [3, 5]], 16, 1),
    "C3Ghost": (classic.C3Ghost(8, 16), [16], 16, 1),
    "GhostConv": (classic.GhostConv(8, 16, 3, 2), [16, 3, 2], 16, 2),
    "GhostBottleneck": (classic.GhostBottleneck(8, 16, 3, 2), [16, 3, 2], 16, 2),
    "GhostBottleneck plain": (classic.GhostBottleneck(8, 8), [8], 8, 1),
    "CrossConv": (classic.CrossConv(8, 8, 5, 1, 2), [8, 5, 1, 2], 8, 1),
    "DWConv": (classic.DWConv(8, 16, 3, 2), [16, 3, 2], 16, 2),
    "SPP": (classic.SPP(8, 16, (3, 5)), [16, [3, 5]], 16, 1),
    "SPPF": (classic.SPPF(8, 16), [16, 5], 16, 1),
    "Focus": (classic.Focus(8, 16, 3), [16, 3], 16, 2),
    "Contract": (classic.Contract(2), [2], 32, 2),
    "Expand": (classic.Expand(2), [2], 2, 0.5),
    "nn.MaxPool2d": (nn.MaxPool2d(2, 2), [2, 2], 8, 2),
    "nn.BatchNorm2d": (nn.BatchNorm2d(8), [], 8, 1),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_the_computation_of_its_name(tmp_path, name):
    block, arguments, width, stride = BLOCKS[name]
    model = stand_in(*one_block(name.split()[0], block, arguments, width, stride), seed=3)
    found = yolov5.read(write_classic(tmp_path / "a.pt", model, half=False)).model
    with torch.no_grad():
        close(found.double()(image())[1][0], model.double()(image())[1][0])


def test_activations_are_those_of_the_file(tmp_path):
    block = classic.Conv(8, 8, 3, act=nn.Hardswish())
    model = stand_in(*one_block("Conv", block, [8, 3], 8), seed=3)
    found = yolov5.read(write_classic(tmp_path / "a.pt", model, half=False)).model
    assert type(found.model[1].act) is nn.Hardswish
    with torch.no_grad():
        close(found.double()(image())[1][0], model.double()(image())[1][0])


def test_it_fuses_as_any_model_does(tmp_path):
    classic.classic(tmp_path / "a.pt")
    model = load_checkpoint(tmp_path / "a.pt").model.double()
    with torch.no_grad():
        before = model(image())[0]
        fused = model.fuse(verbose=False)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        close(fused(image())[0], before)


def altered(change):
    """A checkpoint whose configuration, or modules, are changed before it is written."""
    layers, config = classic.network("v6.0", 3)
    model = stand_in(layers, config)
    change(model)
    return model


def two_names(model):
    model.names = ["a", "b"]


def unknown_block(model):
    model.yaml["backbone"][2][2] = "MyBlock"


def code_as_argument(model):
    model.yaml["backbone"][0][3] = [32, 6, 2, "__import__('os').system('true')"]


def other_repeats(model):
    model.yaml["backbone"][2][1] = 20


def other_width(model):
    model.yaml["width_multiple"] = 0.5


def another_shortcut(model):
    model.model[4].m[0].add = False


def another_stride(model):
    model.model[3].conv.stride = (1, 1)


def another_head(model):
    model.model[-1] = nn.Identity()


def no_configuration(model):
    del model.yaml


def huge_repeats(model):
    model.yaml["backbone"][2][1] = 10**9


def huge_width(model):
    model.yaml["backbone"][2][3] = [10**6]


def reads_ahead(model):
    model.yaml["backbone"][2][0] = 20


def fused_already(model):
    del model.model[0].bn


def strange_activation(model):
    model.model[0].act = nn.Softmax(1)


REFUSED = {
    two_names: "2 class names and outputs for 3 classes",
    unknown_block: "layer 2 of its configuration is a MyBlock: this version builds Conv",
    code_as_argument: "layer 0 of its configuration, a Conv, can't be built",
    other_repeats: r"its configuration has a module model\.2\.m\.2 and its file has none",
    other_width: "by its configuration",
    another_shortcut: r"the add of model\.4\.m\.0 is False, and by its configuration True",
    another_stride: r"the stride of model\.3\.conv is \(1, 1\), and by its configuration \(2, 2\)",
    another_head: "its last layer is a Identity, not the Detect",
    no_configuration: "holds no configuration",
    huge_repeats: "the number of repeats in layer 2 of its configuration is 1000000000",
    huge_width: "by its configuration",
    reads_ahead: "layer 2 of its configuration reads from 20, which is no layer before it",
    fused_already: "its file has none: it was fused, take the unfused file",
    strange_activation: "model.0.act is a Softmax",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_file_that_computes_something_else_is_refused(tmp_path, change):
    write_classic(tmp_path / "a.pt", altered(change))
    with pytest.raises(UserError, match=REFUSED[change]) as error:
        load_checkpoint(tmp_path / "a.pt")
    assert str(error.value).startswith(f"model={tmp_path / 'a.pt'}: ")
    assert "\n" not in str(error.value)


def test_an_ultralytics_checkpoint_is_none_of_these(detector, tmp_path):
    assert not yolov5.recognises(detector)
    torch.save({"model": small_model()}, tmp_path / "a.pt")
    assert not yolov5.recognises(tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"nothing")
    assert not yolov5.recognises(tmp_path / "b.pt")


def test_the_real_one(shared):
    model = yolov5.read(shared / "weights" / "yolov5n_coco80.pt").model
    assert sum(each.numel() for each in model.parameters()) == 1_872_157  # as published for YOLOv5n v6.0
    assert model.names[0] == "person"
    head = find_head(model)
    assert [layer.in_features for layer in head.layers] == [64, 128, 256]
    assert head.layers[0].layout.sizes[0] == (10 / 8, 13 / 8)
    with torch.no_grad():
        theirs = classic.load_as_the_repository_does(shared / "weights" / "yolov5n_coco80.pt").double()(image())
        close(model.double()(image())[0], theirs[0])
