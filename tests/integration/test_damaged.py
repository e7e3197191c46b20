"""Damaged checkpoints and data, made here: each ends in one line that names the file and what is wrong with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import yaml
from builders import repacked
from torch import nn

from yolo_os import ShiftRecipe
from yolo_os.errors import UserError
from yolo_os.integration.checkpoint import RECORD, load_checkpoint
from yolo_os.integration.data import calibration_batches, image_size, read_description
from yolo_os.integration.detect import detect
from yolo_os.integration.train import _check_optimizer


@pytest.fixture
def contents(detector):
    return torch.load(detector, weights_only=False)


def conv(contents):
    return contents["model"].model[0].conv


def head(contents):
    return contents["model"].model[-1]


def put(holder, **values):
    vars(holder).update(values)


def weight(layer, tensor):
    layer._parameters["weight"] = nn.Parameter(tensor, requires_grad=False)


DAMAGE = {
    "ema a tensor": (lambda c: c.update(ema=torch.ones(3)), "its 'ema' is a Tensor"),
    "ema a list": (lambda c: c.update(ema=[1]), "its 'ema' is a list"),
    "model a tensor": (lambda c: c.update(model=torch.ones(3)), "its 'model' is a Tensor"),
    "model a state_dict": (lambda c: c.update(model=c["model"].state_dict()), "its 'model' is a OrderedDict"),
    "no model": (lambda c: c.update(model=None), "it holds no model"),
    "train_args a list": (lambda c: c.update(train_args=[1, 2]), "its train_args are a list"),
    "train_args by number": (lambda c: c.update(train_args={1: 2}), "its train_args are a dict"),
    "image size of text": (lambda c: c["train_args"].update(imgsz="big"), "the image size of its training, 'big'"),
    "image size below 0": (lambda c: c["train_args"].update(imgsz=-32), "the image size of its training, -32"),
    "a gain of text": (lambda c: c["train_args"].update(box="x"), "does not run on an image"),
    "record of text": (lambda c: c.update({RECORD: "x"}), "its record of earlier shifts"),
    "record without a date": (lambda c: c.update({RECORD: [{"recipe": {"method": "os"}}]}), "its record of earlier"),
    "fitness of text": (lambda c: c.update(best_fitness="x"), "its 'best_fitness' is a str, no number"),
    "updates of text": (lambda c: c.update(updates="x"), "its 'updates' is a str, no number"),
    "quantised": (lambda c: c.update(modelopt={"a": 1}), "quantised in training"),
    "expanded tensor": (lambda c: weight(conv(c), torch.zeros(1).expand(2**36)), "larger .* than what is stored"),
    "overlapping tensor": (
        lambda c: weight(conv(c), torch.zeros(99).as_strided((8, 3, 3, 3), (1, 1, 1, 1))),
        "larger .* than what is stored",
    ),
    "meta tensor": (lambda c: c["model"].model[0].to("meta"), "_rebuild_meta_tensor_no_storage"),
    "sparse tensor": (lambda c: c.update(extra=torch.ones(2, 2).to_sparse()), "_get_layout"),
    "wrong shape": (lambda c: weight(conv(c), torch.zeros(4, 3, 3, 3)), r"have the shape \(4, 3, 3, 3\), not \(8,"),
    "wrong head": (lambda c: weight(head(c).cv3[0][-1], torch.zeros(7, 32, 1, 1)), r"not \(10, 32, 1, 1\)"),
    "whole numbers for weights": (
        lambda c: weight(conv(c), torch.zeros(8, 3, 3, 3, dtype=torch.int8)),
        "no floating-point numbers",
    ),
    "no channels": (lambda c: put(conv(c), out_channels="x"), r"have the shape|is damaged"),
    "a stride of text": (lambda c: put(conv(c), stride="x"), "does not run on an image"),
    "no layer": (lambda c: c["model"].model._modules.update({"3": None}), "does not run on an image"),
    "a layer that is the model": (lambda c: c["model"].model._modules.update({"3": c["model"]}), "holds itself"),
    "a padding of 2 ** 40": (lambda c: put(conv(c), padding=(2**40, 2**40)), "does not run on an image"),
    "strides of text": (lambda c: put(c["model"], stride="x"), "the strides of its model are damaged"),
    "strides of 0": (lambda c: put(c["model"], stride=torch.zeros(3)), r"the strides of its model, \[0.0"),
    "names of lists": (lambda c: put(c["model"], names={0: [1]}), "class names of its model are damaged"),
    "names with a gap": (lambda c: put(c["model"], names={0: "a", 7: "b"}), "not numbered from 0"),
    "names by name": (lambda c: put(c["model"], names={"a": "b"}), "not by number"),
    "yaml of text": (lambda c: put(c["model"], yaml="x"), "the architecture is no dictionary"),
    "no weights": (lambda c: c.update(model=nn.SiLU()), "its model has no weights"),
    "bare layers": (lambda c: c.update(model=c["model"].model), r"the bare layers .*save\('NAME.pt'\)"),
    "bins of text": (lambda c: put(head(c), reg_max="x"), r"its head is damaged \(TypeError"),
    "classes of text": (lambda c: put(head(c), nc="x"), "does not run on an image"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_checkpoints_are_refused_in_a_line(kind, contents, tmp_path):
    damage, message = DAMAGE[kind]
    damage(contents)
    torch.save(contents, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=rf"^model=.*bad\.pt: .*{message}") as error:
        load_checkpoint(tmp_path / "bad.pt")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


WHOLES = {
    "a bare model": (lambda model: model, r"a bare DetectionModel was saved .*save\('NAME.pt'\)"),
    "a state_dict": (lambda model: model.state_dict(), r"a bare state_dict was saved.*save\('NAME.pt'\)"),
    "a list": (lambda model: [1], r"holds no model.*this is a list"),
}


@pytest.mark.parametrize("kind", WHOLES)
def test_what_is_saved_instead_of_a_checkpoint_is_called_so(kind, contents, tmp_path):
    make, message = WHOLES[kind]
    torch.save(make(contents["model"]), tmp_path / "bad.pt")
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "bad.pt")


def test_a_bare_model_is_called_so_where_it_is_trusted_too(contents, tmp_path):
    torch.save(contents["model"], tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"the bare layers of a model were saved.*save\('NAME.pt'\)"):
        load_checkpoint(tmp_path / "bad.pt", trust=True)


def test_weights_under_another_ending_are_called_so(contents, tmp_path):
    torch.save(contents["model"].state_dict(), tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"a \.pth file mostly holds weights without their model"):
        load_checkpoint(tmp_path / "bad.pth")


def test_a_record_that_claims_more_than_is_stored_is_not_read_past_its_end(contents, tmp_path):
    """Torch's own reader takes the size from the pickle, and memory beyond the record with it."""
    torch.save(contents, tmp_path / "good.pt")
    shorter = repacked(
        tmp_path / "good.pt", tmp_path / "bad.pt", lambda name, data: data[:-8] if name == "data/0" else data
    )
    with pytest.raises(UserError, match="the data of tensor 0 are missing or of another size"):
        load_checkpoint(shorter)
    without = repacked(
        tmp_path / "good.pt", tmp_path / "less.pt", lambda name, data: None if name == "data/0" else data
    )
    with pytest.raises(UserError, match="the data of tensor 0 are missing"):
        load_checkpoint(without)


def test_a_flipped_bit_is_noticed(detector, tmp_path):
    data = bytearray(detector.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"truncated or damaged \(Bad CRC-32"):
        load_checkpoint(tmp_path / "bad.pt")


@pytest.mark.parametrize("size", [0, -32, 100])
def test_image_sizes_that_are_none(size, detector):
    with pytest.raises(UserError, match=f"imgsz={size}: takes a multiple"):
        image_size(load_checkpoint(detector).model, size)


def test_an_optimizer_of_other_weights_is_refused_before_its_first_step(detector):
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight])
    optimizer.state[weight] = {"step": torch.ones(()), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    trainer = SimpleNamespace(optimizer=optimizer, args=SimpleNamespace(model="last.pt"))
    _check_optimizer(trainer)
    optimizer.state[weight]["exp_avg_sq"] = torch.zeros(2)
    with pytest.raises(UserError, match=r"last\.pt: the state of its optimizer \(exp_avg_sq\) does not fit"):
        _check_optimizer(trainer)


def test_a_model_without_strides_is_refused_where_a_size_is_asked_for(detector):
    model = load_checkpoint(detector).model
    del model.stride
    with pytest.raises(UserError, match="the model has no strides"):
        image_size(model, None)


def test_images_of_other_channels_are_refused(detector, digits, tmp_path):
    model = load_checkpoint(detector).model
    names = dict(model.names)
    content = {"path": str(tmp_path), "train": "images", "val": "images", "names": names, "channels": 1}
    (tmp_path / "images").mkdir()
    (tmp_path / "grey.yaml").write_text(yaml.safe_dump(content))
    for call in (
        lambda: calibration_batches(model, tmp_path / "grey.yaml", ShiftRecipe()),
        lambda: detect(model, tmp_path / "grey.yaml", split="val"),
    ):
        with pytest.raises(UserError, match="has images of 1 channels, and the model takes 3"):
            call()


BAD_DATA = {
    "nesting": "a: " + "[" * 5000 + "]" * 5000,
    "bomb": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
    "a list": "- a\n",
    "nothing": "",
    "names of lists": "path: .\ntrain: images\nval: images\nnames: [[a]]\n",
    "names of numbers": "path: .\ntrain: images\nval: images\nnames: {a: b}\n",
    "paths of numbers": "path: 1\ntrain: 2\nval: 3\nnames: [a]\n",
    "paths of lists of lists": "path: .\ntrain: [[[1]]]\nval: images\nnames: [a]\n",
    "a path with a null": 'path: "a\\0b"\ntrain: images\nval: images\nnames: [a]\n',
    "a path that is too long": f"path: {'x' * 5000}\ntrain: images\nval: images\nnames: [a]\n",
    "no user": "path: ~nosuchuser/a\ntrain: images\nval: images\nnames: [a]\n",
    "billions of classes": "path: .\ntrain: images\nval: images\nnc: 2000000000\n",
    "less than no classes": "path: .\ntrain: images\nval: images\nnc: -1\n",
    "another number of classes": "path: .\ntrain: images\nval: images\nnames: [a]\nnc: 3\n",
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_descriptions_that_are_none_are_refused_in_a_line(kind, in_tmp):
    (in_tmp / "bad.yaml").write_text(BAD_DATA[kind])
    with pytest.raises(UserError, match=r"^data=bad\.yaml: ") as error:
        read_description("bad.yaml", "bad.yaml")
    assert "\n" not in str(error.value)
