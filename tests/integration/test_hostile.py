"""Files of strangers: nothing in them is run, nothing is fetched, unpacked or deleted because of them.

Every file is made here. Code that runs leaves a marker; every attempt to connect, or to start a program, is recorded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  # it asks the system for its fonts when it is imported
import numpy as np
import pytest
import requests
import torch
import yaml
from builders import repacked, write_devkit
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.nn.modules import Conv, Detect, TorchVision
from ultralytics.utils.loss import v8DetectionLoss

from yolo_os.cli import main
from yolo_os.errors import UserError
from yolo_os.integration.architecture import build
from yolo_os.integration.checkpoint import load_checkpoint, read_contents
from yolo_os.integration.guard import guarded
from yolo_os.integration.labelcache import read_label_cache
from yolo_os.integration.unpickle import Damaged, Refused, read_archive

CAT = [("cat", (10, 10, 50, 50))]
TINY = ["epochs=1", "imgsz=64", "batch=8", "nbs=8", "fraction=0.05", "workers=0", "device=cpu", "plots=False"]


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture
def marker(tmp_path):
    """The file that hostile code makes."""
    return tmp_path / "owned"


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """What would have connected or started a program, which fails."""
    tried: list[str] = []

    def record(name):
        def refuse(*given, **named):
            tried.append(f"{name}{given[:1]}")
            raise OSError("no network, no programs in these tests")

        return refuse

    for owner, name in (
        (socket.socket, "connect"),
        (socket, "create_connection"),
        (socket, "getaddrinfo"),
        (requests.Session, "request"),
        (subprocess.Popen, "__init__"),  # the class stays, of which others are made
    ):
        monkeypatch.setattr(owner, name, record(f"{owner.__name__}.{name}"))
    monkeypatch.setattr("ultralytics.utils.checks.ONLINE", True)  # as on a machine that is
    monkeypatch.setattr("ultralytics.utils.checks.AUTOINSTALL", True)
    return tried


@pytest.fixture
def contents(detector):
    return torch.load(detector, weights_only=False)


def hostile(marker):
    """An object that writes the marker when it is unpickled."""
    return Call(open, str(marker), "w")


def writes(marker):
    """Python that writes the marker, as an expression."""
    return f"open({str(marker)!r}, 'w')"


def with_state(module, **state):
    vars(module).update(state)
    return module


class Sneaky(nn.Module):
    """A module whose class is not one of torch or Ultralytics."""


# What hides in a checkpoint, each by a function of its contents and the marker.
IN_CHECKPOINTS = {
    "a call in the open": lambda c, m: {**c, "extra": hostile(m)},
    "a call deep in the settings": lambda c, m: {**c, "train_args": {**c["train_args"], "data": [(hostile(m),)]}},
    "os.system": lambda c, m: {**c, "extra": Call(__import__("os").system, f"touch {m}")},
    "eval": lambda c, m: {**c, "extra": Call(eval, writes(m))},
    "getattr of a module": lambda c, m: {**c, "extra": Call(getattr, Call(__import__, "os"), "system")},
    "getattr of an object of its own": lambda c, m: {**c, "extra": Call(getattr, c["model"], "__class__")},
    "a model that loads another": lambda c, m: {**c, "extra": Call(DistillationModel, str(m) + ".pt", c["model"])},
    "a model of torchvision, with weights": lambda c, m: {**c, "extra": Call(TorchVision, "alexnet", "DEFAULT")},
    "a model from an architecture file": lambda c, m: {**c, "extra": Call(tasks.DetectionModel, "x.yaml")},
    "a constructor of a harmless layer": lambda c, m: {**c, "extra": Call(nn.Conv2d, 3, 3, 1)},
    "a class of its own": lambda c, m: {**c, "model": nn.Sequential(Sneaky())},
    "a class as a hook": lambda c, m: hook(c, DistillationModel),
    "a function as a hook": lambda c, m: hook(c, open),
    "a module as a hook": lambda c, m: hook(c, nn.Identity()),
    "a class as data": lambda c, m: {**c, "train_args": {**c["train_args"], "optimizer": nn.Linear}},
    "a module for forward": lambda c, m: {**c, "model": with_state(c["model"], forward=nn.Identity())},
    "a module for a method": lambda c, m: {**c, "model": with_state(c["model"], fuse=nn.Identity())},
    "a hook on a tensor": lambda c, m: {
        **c,
        "extra": Call(torch._utils._rebuild_parameter, torch.ones(1), True, {0: 1}),
    },
    "a tensor of another class": lambda c, m: {
        **c,
        "extra": Call(torch._tensor._rebuild_from_type_v2, open, torch.Tensor, (str(m), "w"), {}),
    },
    "a partial": lambda c, m: {**c, "extra": __import__("functools").partial(open, str(m), "w")},
    "an activation in its architecture": lambda c, m: {
        **c,
        "model": with_state(c["model"], yaml={**c["model"].yaml, "activation": writes(m)}),
    },
    "a layer in its architecture": lambda c, m: {
        **c,
        "model": with_state(c["model"], yaml={**c["model"].yaml, "head": [[-1, 1, "load_checkpoint", [str(m)]]]}),
    },
    "a bomb of lists": lambda c, m: {**c, "extra": doubling()},
    "a list that holds itself": lambda c, m: {**c, "extra": itself()},
    "numpy objects": lambda c, m: {**c, "extra": np.array([hostile(m)], dtype=object)},
    "text for a method": lambda c, m: {**c, "model": with_state(c["model"], parameters="x")},
    "a number for a method": lambda c, m: {**c, "model": with_state(c["model"], named_modules=5)},
    "nothing for a method": lambda c, m: {**c, "model": with_state(c["model"], float=None)},
    "tensors over the same bytes": lambda c, m: {**c, "extra": over_the_same()},
}


def parameter(*arguments):
    return Call(torch._utils._rebuild_parameter, *arguments)


def hook(contents, function):
    contents["model"]._forward_hooks[0] = function
    return contents


def over_the_same():
    """Views that together are a thousand times what is stored of them."""
    numbers = torch.zeros(200_000)
    return [numbers[start:] for start in range(1000)]


def doubling():
    value = ["x"]
    for _ in range(60):
        value = [value, value]
    return value


def itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize("kind", IN_CHECKPOINTS)
def test_checkpoints_that_would_run_code_are_refused(kind, contents, tmp_path, marker, outside):
    file = tmp_path / "bad.pt"
    torch.save(IN_CHECKPOINTS[kind](contents, marker), file)
    with pytest.raises(UserError) as error:
        load_checkpoint(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert not marker.exists() and not outside
    with pytest.raises(UserError), guarded():  # and so they are wherever Ultralytics itself loads one
        tasks.load_checkpoint(str(file))
    assert not marker.exists() and not outside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pt"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_no_protocol_is_a_way_around(protocol, contents, tmp_path, marker):
    torch.save({**contents, "extra": hostile(marker)}, tmp_path / "bad.pt", pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"refused: it holds a call of \w*io\.open"):
        load_checkpoint(tmp_path / "bad.pt")
    torch.save(contents, tmp_path / "good.pt", pickle_protocol=protocol)
    assert load_checkpoint(tmp_path / "good.pt").shifts == []
    assert not marker.exists()


INSTRUCTIONS = {
    "INST": b"(S'touch'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch'\no.",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\n)}\x92.",
    "EXT1": b"\x80\x02\x82\x01.",
    "BUILD of a function": b"\x80\x02cos\nsystem\n}X\x01\x00\x00\x00aK\x01sb.",
    "REDUCE of a name made of text": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
    "a number of many digits": b"\x80\x02\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b".",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02R.",
    "nesting": b"\x80\x02" + b"](" * 3000 + b"." + b"e" * 3000 + b".",
    "deep nesting": b"\x80\x02N" + b"\x85" * 100_000 + b".",
    "a name that nothing is made of": b"\x80\x04\x8c\x0bantigravity\x8c\x01x\x930}.",
    "a name of several parts for a loss": (
        b"\x80\x04}\x8c\x01a\x8c\x16ultralytics.utils.loss\x8c\x0ftorch.os.system\x93\x8c\x01x\x85Rs."
    ),
    "a call of a loss": b"\x80\x02}U\x01acultralytics.utils.loss\nmake_anchors\n)Rs.",
    "a list copied over and over": (
        b"\x80\x04](" + b"K\x01" * 1_000_000 + b"e\x94(" + b"ctorch\nSize\nh\x00\x85R" * 1000 + b"t."
    ),
    "a tuple of tuples as a key": b"\x80\x02}N" + b"".join(b"2\x86" for _ in range(60)) + b"Ns.",
}


@pytest.mark.parametrize("kind", INSTRUCTIONS)
def test_instructions_of_pickle_that_are_not_let_through(kind, detector, tmp_path, outside):
    program = INSTRUCTIONS[kind]
    repacked(detector, tmp_path / "bad.pt", lambda name, data: program if name == "data.pkl" else data)
    with pytest.raises((Refused, Damaged)):
        read_archive(tmp_path / "bad.pt")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "bad.pt")
    assert not outside


def before_it(whole, other):
    """A file that starts as another one and ends as a whole one."""
    return other + whole


def beside_it(whole, other):
    """Two archives, whose lists are found by where they lie (as Python does), and by where the end says (as torch)."""
    first, second = (each[:-22] for each in (other, whole))
    there, here = (struct.unpack("<L", each[-6:-2])[0] for each in (other, whole))
    entries, at = bytearray(second), here
    while at < len(entries):
        offset, lengths = struct.unpack_from("<L", entries, at + 42)[0], struct.unpack_from("<3H", entries, at + 28)
        struct.pack_into("<L", entries, at + 42, offset + there - here)
        at += 46 + sum(lengths)
    return first + bytes(entries) + whole[-22:-6] + struct.pack("<L", there) + bytes(2)


@pytest.mark.parametrize("join", [before_it, beside_it])
def test_a_file_in_which_others_read_other_parts_is_refused(join, detector, tmp_path, marker):
    """What is read here has to be what `torch.load` reads, or a look at a file says nothing of it."""
    program = pickle.dumps({"model": hostile(marker)}, 2) + b"." * 1_000_000
    whole = repacked(detector, tmp_path / "whole.pt", lambda name, data: data).read_bytes()
    if join is before_it:
        torch.save({"model": hostile(marker)}, tmp_path / "other.pt", _use_new_zipfile_serialization=False)
    else:
        repacked(detector, tmp_path / "other.pt", lambda name, data: program if name == "data.pkl" else data)
    (tmp_path / "both.pt").write_bytes(join(whole, (tmp_path / "other.pt").read_bytes()))
    with zipfile.ZipFile(tmp_path / "both.pt") as archive:
        assert any(archive.read(name) != program for name in archive.namelist() if name.endswith("data.pkl"))
    with contextlib.suppress(Exception):
        torch.load(tmp_path / "both.pt", weights_only=False)
    assert marker.exists()  # what torch reads of it
    marker.unlink()
    with pytest.raises(Damaged):
        read_archive(tmp_path / "both.pt")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "both.pt")
    assert not marker.exists()


def test_parts_are_told_apart_as_torch_does(detector, tmp_path):
    with zipfile.ZipFile(repacked(detector, tmp_path / "bad.pt", lambda name, data: data), "a") as archive:
        archive.writestr(archive.namelist()[0].split("/")[0] + "/DATA.PKL", b"N.")
    with pytest.raises(Damaged, match="two of one name"):
        read_archive(tmp_path / "bad.pt")


def test_a_loss_in_a_checkpoint_is_left_out_whatever_it_is(contents, detector, data, in_tmp):
    for number, place in enumerate((vars(contents["model"]), contents["model"]._modules)):
        place["criterion"] = nn.Identity()
        torch.save(contents, in_tmp / f"{number}.pt")
        assert main(["inspect", f"model={number}.pt", f"data={data}", "images=4"]) == 0
        assert not hasattr(read_contents(in_tmp / f"{number}.pt")["model"], "criterion")
        del place["criterion"]


def test_torchscript_is_refused_before_it_is_loaded(tmp_path):
    torch.jit.save(torch.jit.script(nn.Identity()), tmp_path / "script.pt")
    with pytest.raises(UserError, match="TorchScript"):
        load_checkpoint(tmp_path / "script.pt")


def test_old_pickles_are_refused(contents, tmp_path, marker):
    torch.save({**contents, "extra": hostile(marker)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"torch before 1\.6"):
        load_checkpoint(tmp_path / "old.pt")
    assert not marker.exists()


def test_what_official_checkpoints_hold_is_read(contents, tmp_path):
    """Of former versions too: paths, numpy numbers, name spaces, the loss, `Detect.forward`, fused layers."""
    model = contents["model"]
    model.args = types.SimpleNamespace(**contents["train_args"])
    model.criterion = v8DetectionLoss(with_state(model, args=types.SimpleNamespace(box=1.0, cls=1.0, dfl=1.0)))
    conv = next(layer for layer in model.modules() if type(layer) is Conv)
    conv.forward = conv.forward_fuse
    model.model[-1].detect = Detect.forward
    contents.update(best_fitness=np.float64(0.5), where=Path("a/b"), results=np.arange(6.0).reshape(2, 3))
    contents.update(order=OrderedDict(a=1), some={1, 2}, raw=b"\x00\xff", size=torch.Size([1, 2]))
    torch.save(contents, tmp_path / "old.pt")
    read = read_contents(tmp_path / "old.pt")
    assert read["best_fitness"] == 0.5 and read["where"] == Path("a/b") and read["results"].tolist()[1] == [3, 4, 5]
    assert (read["order"], read["some"], read["raw"], read["size"]) == ({"a": 1}, {1, 2}, b"\x00\xff", (1, 2))
    assert not hasattr(read["model"], "criterion") and read["model"].args.box == 1.0
    fused = next(layer for layer in read["model"].modules() if type(layer) is Conv)
    assert fused.forward.__self__ is fused
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, read["model"].state_dict()[name]), name
    image = torch.rand(1, 3, 64, 64)
    conv.forward = fused.forward = None
    del vars(conv)["forward"], vars(fused)["forward"]
    assert torch.equal(model.float()(image)[0], read["model"].float()(image)[0])


def test_trusting_a_file_says_what_it_loads(contents, tmp_path, marker, caplog):
    torch.save({**contents, "extra": hostile(marker)}, tmp_path / "mine.pt")
    load_checkpoint(tmp_path / "mine.pt", trust=True)
    assert marker.exists()  # what trusting it means
    assert "is loaded with its code, which holds" in caplog.text and "io.open" in caplog.text


# Architectures, as text of a YAML file: what Ultralytics would evaluate, import or call.
ROW = "head: [[-1, 1, Conv, [8, 3, 2]], [[0, 1, 2], 1, Detect, [nc]]]"
PLAIN = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]]}
HEAD = [[-1, 1, "Conv", [16, 3, 2]], [[0, 1, 2], 1, "Detect", ["nc"]]]
ARCHITECTURES = {
    "activation": lambda m: {"activation": writes(m)},
    "activation with a call in its arguments": lambda m: {"activation": f"nn.LeakyReLU({writes(m)})"},
    "activation of another module": lambda m: {"activation": "torch.hub.load('a/b', 'c')"},
    "activation by keywords": lambda m: {"activation": f"nn.ReLU(**{writes(m)})"},
    "a function for a layer": lambda m: {"head": [[-1, 1, "load_checkpoint", [str(m)]]]},
    "a model for a layer": lambda m: {"head": [[-1, 1, "DetectionModel", ["x.yaml"]]]},
    "torchvision": lambda m: {"head": [[-1, 1, "TorchVision", [8, "alexnet", "DEFAULT"]]]},
    "torchvision's functions": lambda m: {"head": [[-1, 1, "torchvision.ops.nms", [8]]]},
    "an attribute of torch.nn": lambda m: {"head": [[-1, 1, "nn.modules.module.Module", []]]},
    "a variable as argument": lambda m: {"head": [[-1, 1, "Conv", ["ch"]]]},
    "a module as argument": lambda m: {"head": [[-1, 1, "Conv", ["ast"]]]},
    "an expression as argument": lambda m: {"head": [[-1, 1, "Conv", [writes(m)]]]},
    "endless repeats": lambda m: {"head": [[-1, 10**9, "Conv", [8]]]},
    "endless channels": lambda m: {"head": [[-1, 1, "Conv", [10**12]]]},
    "endless classes": lambda m: {"nc": 10**9},
    "a scale of text": lambda m: {"scales": {"n": ["a", "b", "c"]}},
    "a row too short": lambda m: {"head": [[-1, 1, "Conv"]]},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures_that_would_run_code_are_refused(kind, in_tmp, marker, outside, capsys):
    (in_tmp / "plain.yaml").write_text(yaml.safe_dump({**PLAIN, "head": HEAD}))
    build(in_tmp / "plain.yaml")
    (in_tmp / "bad.yaml").write_text(yaml.safe_dump({**PLAIN, "head": HEAD, **ARCHITECTURES[kind](marker)}))
    assert main(["inspect", "model=bad.yaml"]) == 2
    assert main(["train", "model=bad.yaml", "data=none.yaml"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("yolo-os")]
    assert len(lines) == 2 and all("error: model=bad.yaml" in line for line in lines)
    assert not marker.exists() and not outside


def test_activations_of_torch_are_let_through(in_tmp):
    for text in ("nn.ReLU()", "torch.nn.LeakyReLU(0.1)", "nn.Hardtanh(min_val=-2, max_val=2)"):
        (in_tmp / "mine.yaml").write_text(yaml.safe_dump({**PLAIN, "head": HEAD, "activation": text}))
        kinds = {type(layer).__name__ for layer in build(in_tmp / "mine.yaml").modules()}
        assert kinds & {"ReLU", "LeakyReLU", "Hardtanh"}


@pytest.fixture
def data(in_tmp, digits):
    """A small data set of its own in the current folder, as a data.yaml."""
    source = sorted((digits / "VOC2007" / "JPEGImages").glob("*"))[:6]
    for split in ("train", "val"):
        (in_tmp / "images" / split).mkdir(parents=True)
        (in_tmp / "labels" / split).mkdir(parents=True)
        for image in source:
            shutil.copy(image, in_tmp / "images" / split / image.name)
            (in_tmp / "labels" / split / f"{image.stem}.txt").write_text("1 0.5 0.5 0.4 0.4\n")
    return described(in_tmp)


def described(folder, name="data.yaml", **changes):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    content = {"path": str(folder), "train": "images/train", "val": "images/val", "names": dict(enumerate(names))}
    (folder / name).write_text(yaml.safe_dump({**content, **changes}))
    return folder / name


TRAINED_WITH = ("model", "pretrained", "distill_model", "resume", "cfg")


@pytest.mark.parametrize("key", TRAINED_WITH)
def test_every_path_that_a_training_loads_goes_through_the_gate(
    key, contents, detector, data, in_tmp, marker, outside, capsys
):
    torch.save({**contents, "extra": hostile(marker)}, in_tmp / "bad.pt")
    (in_tmp / "run.yaml").write_text("pretrained: bad.pt\n")
    before = files(in_tmp)
    words = {
        "model": ["model=bad.pt"],
        "resume": ["resume=bad.pt"],
        "cfg": [f"model={detector}", "cfg=run.yaml"],
    }.get(key, [f"model={detector}", f"{key}=bad.pt"])
    assert main(["train", *words, f"data={data}", "os=False", *TINY]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "refused: it holds a call of" in error and "io.open" in error
    assert not marker.exists() and not outside and files(in_tmp) == before


def files(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


MODES = {
    "shift": ["shift", "model={model}", "data={data}", "out=out.pt", "images=4", "held_out=2", "plots=False"],
    "inspect": ["inspect", "model={model}", "data={data}", "images=4"],
    "val": ["val", "model={model}", "data={data}", "split=val"],
    "train": ["train", "model={model}", "data={data}", "os=False", *TINY],
}


@pytest.mark.parametrize("mode", MODES)
def test_a_hostile_checkpoint_runs_in_no_mode(mode, contents, data, in_tmp, marker, outside, capsys):
    torch.save({**contents, "extra": Call(DistillationModel, "other.pt", contents["model"])}, in_tmp / "bad.pt")
    torch.save({**contents, "extra": hostile(marker)}, in_tmp / "other.pt")
    before = files(in_tmp)
    assert main([word.format(model="bad.pt", data=data) for word in MODES[mode]]) == 2
    assert "refused: it holds a call of ultralytics.nn.distill_model.DistillationModel" in capsys.readouterr().err
    assert not marker.exists() and not outside and files(in_tmp) == before


@pytest.mark.parametrize("mode", ["shift", "inspect", "train"])
def test_planted_caches_are_data(mode, detector, data, in_tmp, marker, outside):
    for split in ("train", "val"):
        with open(in_tmp / "labels" / f"{split}.cache", "wb") as file:
            np.save(file, np.array({"labels": hostile(marker)}, dtype=object), allow_pickle=True)
    for image in (in_tmp / "images").rglob("*.jpg"):
        np.save(image.with_suffix(".npy"), np.array([hostile(marker)], dtype=object), allow_pickle=True)
    arrays = {name: stamp for name, stamp in files(in_tmp / "images").items() if name.endswith(".npy")}
    assert main([word.format(model=detector, data=data) for word in MODES[mode]]) == 0
    assert not marker.exists() and not outside
    assert {name: stamp for name, stamp in files(in_tmp / "images").items() if name.endswith(".npy")} == arrays


CACHES = {
    "an array of objects over bytes": lambda m: Call(np.ndarray, (1,), np.dtype("O"), b"\x08" * 8),
    "a type with objects in it": lambda m: np.zeros(2, [("a", "O"), ("b", "i4")]),
    "a call": hostile,
    "a class": lambda m: Path(m),
    "a state for a function of numpy": lambda m: Setting(),
}


class Setting:
    """Pickles as a state that is put into what builds arrays."""

    def __reduce__(self):
        return np.dtype, ("f4",), (None, {"__code__": 1, "numbers": np.dtype("O")})


@pytest.mark.parametrize("kind", CACHES)
def test_no_cache_reaches_memory_or_code(kind, tmp_path, marker):
    """A process that dies of it would fail the run of the tests, which is the check of the first kind."""
    content = {"labels": [CACHES[kind](marker)], "hash": "", "results": (1, 1, 1, 1, 1), "msgs": [], "version": ""}
    with (tmp_path / "train.cache").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        array = np.empty((), dtype=object)
        array[()] = content
        pickle.dump(array, file, protocol=3)
    with pytest.raises(Exception) as error:  # upon any of which the labels are scanned
        read_label_cache(tmp_path / "train.cache")
    assert not isinstance(error.value, KeyError | AttributeError)
    assert not marker.exists()


def test_no_image_is_written_anew_and_no_file_deleted_for_its_name(detector, data, in_tmp, capsys):
    """Ultralytics would replace a JPEG that lacks its end, and whatever is called train.cache."""
    for image in (in_tmp / "images" / "train").iterdir():
        image.write_bytes(image.read_bytes()[:-2])
    (in_tmp / "labels" / "train.cache").write_text("mine")
    before = files(in_tmp)
    assert main([word.format(model=detector, data=data) for word in MODES["inspect"]]) == 0
    after = files(in_tmp)
    assert {name: after.get(name) for name in before} == before


def test_label_caches_that_ultralytics_wrote_are_used(detector, data, in_tmp):
    words = [word.format(model=detector, data=data) for word in MODES["inspect"]]
    assert main(words) == 0
    cache = in_tmp / "labels" / "train.cache"
    assert len(read_label_cache(cache)["labels"]) == 6
    before = cache.stat().st_mtime_ns
    assert main(words) == 0
    assert cache.stat().st_mtime_ns == before


def test_a_cache_of_the_wrong_shape_is_scanned_again(detector, data, in_tmp):
    words = [word.format(model=detector, data=data) for word in MODES["inspect"]]
    assert main(words) == 0
    cache = in_tmp / "labels" / "train.cache"
    content = np.load(cache, allow_pickle=True).item()
    content["labels"][0]["bboxes"] = np.zeros((3, 7))
    with cache.open("wb") as file:
        np.save(file, content)
    with pytest.raises(UserError):
        read_label_cache(cache)
    assert main(words) == 0
    assert len(read_label_cache(cache)["labels"]) == 6


FOREIGN = {
    "a class that is none": lambda label: label.update(cls=label["cls"] + 50),
    "a class below 0": lambda label: label.update(cls=label["cls"] - 50),
    "a box that is no number": lambda label: label.update(bboxes=label["bboxes"] * np.nan),
    "a box of any size": lambda label: label.update(bboxes=label["bboxes"] * 1e30),
    "an image of another place": lambda label: label.update(im_file=__file__),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_cache_of_what_the_data_do_not_hold_is_scanned_again(kind, detector, data, in_tmp):
    """Its checksum is of names and sizes, which whoever makes a data set knows."""
    words = [word.format(model=detector, data=data) for word in MODES["inspect"]]
    assert main(words) == 0
    cache = in_tmp / "labels" / "train.cache"
    before, content = read_label_cache(cache), np.load(cache, allow_pickle=True).item()
    for label in content["labels"]:
        FOREIGN[kind](label)
    with cache.open("wb") as file:
        np.save(file, content)
    assert main(words) == 0
    for old, new in zip(before["labels"], read_label_cache(cache)["labels"], strict=True):
        assert old["im_file"] == new["im_file"]
        assert np.array_equal(old["cls"], new["cls"]) and np.array_equal(old["bboxes"], new["bboxes"])


def test_no_cache_is_written_through_a_link(detector, data, in_tmp, capsys):
    """A link in a data set, to a file that is not there yet, such as one that a shell reads at its start."""
    elsewhere = in_tmp / "elsewhere"
    elsewhere.mkdir()
    (in_tmp / "labels" / "train.cache").symlink_to(elsewhere / "profile")
    assert main([word.format(model=detector, data=data) for word in MODES["inspect"]]) == 0
    assert not any(elsewhere.iterdir())


PIPES = {
    "model.pt": ["inspect", "model=model.pt"],
    "data.yaml": ["inspect", "model={detector}", "data=data.yaml"],
    "images/train/pipe.jpg": ["shift", "model={detector}", "data=data.yaml", "images=4", "held_out=2", "out=o.pt"],
    "recipe.yaml": ["shift", "model={detector}", "data=data.yaml", "recipe=recipe.yaml"],
    "labels/train.cache": ["inspect", "model={detector}", "data=data.yaml", "images=4"],
    "kit/VOC2007/ImageSets/Main/test.txt": ["val", "detections=found.json", "devkit=kit"],
    "kit/VOC2007/Annotations/000001.xml": ["voc", "devkit=kit", "out=made"],
    "kit/VOC2007/JPEGImages/000001.jpg": ["voc", "devkit=kit", "out=made"],
    "found.json": ["val", "detections=found.json", "devkit=kit"],
    "classes.txt": ["voc", "devkit=kit", "out=made", "classes=classes.txt"],
}


@pytest.mark.parametrize("pipe", PIPES)
def test_pipes_are_not_waited_for(pipe, detector, data, in_tmp):
    write_devkit(in_tmp / "kit", dict.fromkeys(("000001", "000002"), CAT), {"test": ["000001", "000002"]})
    (in_tmp / "found.json").write_text("[]")
    (in_tmp / pipe).unlink(missing_ok=True)
    os.mkfifo(in_tmp / pipe)

    def waits(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, waits)
    signal.setitimer(signal.ITIMER_REAL, 40, 1)
    try:
        assert main([word.format(detector=detector) for word in PIPES[pipe]]) in (0, 2, 3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


DOWNLOADS = {
    "python": lambda m: writes(m),
    "bash": lambda m: f"bash touch {m}",
    "address": lambda m: "https://example.com/data.zip",
}


@pytest.mark.parametrize("how", DOWNLOADS)
@pytest.mark.parametrize(
    "words",
    [
        ["shift", "split=test"],
        ["inspect", "split=test"],
        ["train", "split=test", "os=False", *TINY],
        ["train", "os=False", *TINY],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_data_sets_download_is_not_run(how, words, detector, data, in_tmp, marker, outside, capsys):
    changes = {"test": "images/none"} if "split=test" in words else {"val": "images/none"}
    described(in_tmp, download=DOWNLOADS[how](marker), **changes)
    assert main([words[0], f"model={detector}", f"data={data}", *words[1:]]) == 2
    assert "yolo-os: error: " in capsys.readouterr().err
    assert not marker.exists() and not outside


def test_a_detector_is_run_on_no_downloaded_split(detector, data, in_tmp, marker, outside):
    from yolo_os.integration.detect import detect

    described(in_tmp, download=writes(marker), test="images/none")
    with pytest.raises(UserError, match="images not found"):
        detect(detector, data, split="test")
    assert not marker.exists() and not outside


@pytest.mark.parametrize("data", ["data.zip", "https://example.com/data.zip", "ul://someone/datasets/x", "x.ndjson"])
@pytest.mark.parametrize("mode", ["shift", "train"])
def test_nothing_is_unpacked_or_fetched(mode, data, detector, in_tmp, outside, capsys):
    with zipfile.ZipFile(in_tmp / "data.zip", "w") as archive:
        archive.writestr("data/data.yaml", "path: .\ntrain: images\nval: images\nnames: [a]\n")
    (in_tmp / "x.ndjson").write_text('{"type": "dataset", "task": "detect"}\n{"type": "image", "url": "https://a/b"}\n')
    before = files(in_tmp)
    assert main([word.format(model=detector, data=data) for word in MODES[mode]]) == 2
    assert "yolo-os: error: " in capsys.readouterr().err
    assert not outside and files(in_tmp) == before


def test_fonts_are_not_fetched(detector, data, in_tmp, outside):
    named = {index: f"数字{index}" for index in range(10)}
    described(in_tmp, names=named)
    assert main(["inspect", f"model={detector}", f"data={data}", "images=4"]) == 0
    assert not outside


def test_a_damaged_file_of_an_official_name_is_left_where_it_is(contents, data, in_tmp, outside, capsys):
    torch.save(contents, in_tmp / "whole.pt")
    (in_tmp / "yolo11n.pt").write_bytes((in_tmp / "whole.pt").read_bytes()[:50_000])
    before = files(in_tmp)
    for mode in MODES:
        words = [word.format(model="yolo11n.pt", data=data) for word in MODES[mode]]
        assert main(words) == 2, mode
        assert "yolo11n.pt: the file is truncated or damaged" in capsys.readouterr().err
    assert main(["train", "model=whole.pt", "pretrained=yolo11n.pt", f"data={data}", "os=False", *TINY]) == 2
    assert "pretrained=yolo11n.pt: the file is truncated or damaged" in capsys.readouterr().err
    assert files(in_tmp) == before and not outside


def unfinished(detector, data, project, *shifts):
    """A training that was interrupted in its second epoch; its folder."""
    from ultralytics.engine.trainer import BaseTrainer

    run_callbacks = BaseTrainer.run_callbacks

    def interrupted(self, event):
        run_callbacks(self, event)
        if event == "on_train_epoch_start" and self.epoch == 1:
            raise KeyboardInterrupt

    words = [f"model={detector}", f"data={data}", *shifts, *TINY[1:], "epochs=2", f"project={project}", "name=a"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseTrainer, "run_callbacks", interrupted)
        assert main(["train", *words]) == 130
    return project / "a"


@pytest.mark.parametrize("shifts", [["os=False"], []], ids=str)
def test_a_resumed_training_runs_nothing_of_its_folder(shifts, detector, data, in_tmp, marker, outside, capsys):
    run = unfinished(detector, data, in_tmp / "runs", *shifts)
    last, best = run / "weights" / "last.pt", run / "weights" / "best.pt"
    contents = torch.load(last, weights_only=False)
    torch.save({**contents, "best_fitness": 1e9}, last)  # so that best.pt stays what it is until it is read
    torch.save({**contents, "extra": hostile(marker)}, best)
    code = main(["train", f"model={last}", "resume=True"])
    assert not marker.exists() and not outside
    assert code == 2, capsys.readouterr().err


def test_a_resumed_training_goes_on_where_its_checkpoint_lies(detector, data, in_tmp, outside):
    run = unfinished(detector, data, in_tmp / "runs", "os=False")
    moved, precious = in_tmp / "moved", in_tmp / "precious"
    shutil.move(run, moved)
    precious.mkdir()
    contents = torch.load(moved / "weights" / "last.pt", weights_only=False)
    contents["train_args"] = {**contents["train_args"], "save_dir": str(precious), "project": str(precious)}
    torch.save(contents, moved / "weights" / "last.pt")
    assert main(["train", f"model={moved / 'weights' / 'last.pt'}", "resume=True"]) == 0
    assert not any(precious.iterdir())
    assert len((moved / "results.csv").read_text().splitlines()) == 3
    shutil.copy(moved / "weights" / "last.pt", in_tmp / "alone.pt")
    torch.save(contents, in_tmp / "alone.pt")
    assert main(["train", "model=alone.pt", "resume=True"]) == 2
    assert not any(precious.iterdir()) and not outside


def test_a_resumed_trainings_data_are_not_fetched(detector, data, in_tmp, marker, outside, capsys):
    run = unfinished(detector, data, in_tmp / "runs", "os=False")
    described(in_tmp, download=writes(marker), val="images/none")
    assert main(["train", f"model={run / 'weights' / 'last.pt'}", "resume=True"]) == 2
    assert "images not found" in capsys.readouterr().err
    assert not marker.exists() and not outside


def test_the_guard_is_gone_after_its_block(detector):
    import ultralytics.data.utils
    import ultralytics.utils.downloads
    from ultralytics.data.base import BaseDataset
    from ultralytics.utils import YAML

    def held():
        return (
            tasks.torch_safe_load,
            tasks.parse_model,
            tasks.SAFE_LOAD,
            ultralytics.data.utils.safe_download,
            ultralytics.utils.downloads.safe_download,
            ultralytics.data.utils.check_font,
            vars(YAML)["load"],
            BaseDataset.load_image,
            BaseDataset.__init__,
        )

    before = held()
    with guarded():
        inside = held()
        with guarded():
            assert held() == inside
        assert all(one != other for one, other in zip(inside, before))
    assert held() == before


def test_mixed_precision_is_not_checked_by_a_download(in_tmp, monkeypatch, caplog):
    """Ultralytics' check of a GPU loads yolo26n.pt, which is not there: a training goes on, as without a network."""
    from ultralytics.utils import checks

    class OnAGPU(torch.nn.Module):
        def parameters(self, recurse=True):
            yield types.SimpleNamespace(device=types.SimpleNamespace(type="cuda"))

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr("ultralytics.utils.WEIGHTS_DIR", Path("weights"))
    with guarded(), caplog.at_level("WARNING"):
        assert checks.check_amp(OnAGPU()) is True
    assert "amp=False" in caplog.text
    assert "yolo26n.pt" in caplog.text


def test_the_guard_goes_along_into_other_processes():
    from yolo_os.integration.guard import GuardedProcess

    packed = pickle.dumps(GuardedProcess())
    before = tasks.torch_safe_load
    unpacked = pickle.loads(packed)
    try:
        assert tasks.torch_safe_load is not before
    finally:
        unpacked._guard.__exit__(None, None, None)
    assert tasks.torch_safe_load is before


def test_a_training_writes_its_checkpoints_whole(detector, data, in_tmp, monkeypatch, capsys):
    """A disk that is full in the second epoch: what the first left is whole, and the error is one line."""
    written = Path.write_bytes
    count = []

    def full(self, content):
        if self.suffix == ".pt":
            count.append(self)
            if len(count) == 3:  # last.pt of the second epoch
                written(self, content[:1000])
                raise OSError(errno.ENOSPC, "No space left on device")
        return written(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    words = [*TINY[1:], "epochs=3", "os=False", f"project={in_tmp / 'runs'}", "name=a"]
    assert main(["train", f"model={detector}", f"data={data}", *words]) == 2
    assert len(count) == 3
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("yolo-os: error: ") and "last.pt: No space left on device" in error
    monkeypatch.undo()
    weights = in_tmp / "runs" / "a" / "weights"
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last.pt"]
    assert read_contents(weights / "last.pt")["epoch"] == 0


def test_a_whole_yolo_that_was_saved_is_called_so(detector, tmp_path):
    from ultralytics import YOLO

    torch.save(YOLO(detector), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"a whole YOLO object was saved .* model.save\('NAME.pt'\); trust=True"):
        load_checkpoint(tmp_path / "whole.pt")
