"""A file of the YOLOv5 repository is read as data: whatever it names, nothing of it runs."""

import io
import os
import pickle
import zipfile

import classic
import pytest
import torch
from torch import nn

from yolo_os.errors import UserError
from yolo_os.integration import yolov5
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.yolov5.archive import Archive, Damaged
from yolo_os.integration.yolov5.pickled import Recorded, Refused, Stored, names_in, read_as_data


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def owned(tmp_path):
    """A file that must not appear."""
    file = tmp_path / "owned"
    yield file
    assert not file.exists()


def hostile(tmp_path, **entries):
    model = classic.stand_in(*classic.network("v6.0", 2))
    return classic.write_classic(tmp_path / "bad.pt", model, **entries)


HOSTILE = {
    "open": lambda owned: Call(open, str(owned), "w"),
    "system": lambda owned: Call(os.system, f"touch {owned}"),
    "eval": lambda owned: Call(eval, f"open({str(owned)!r}, 'w')"),
    "module": lambda owned: Call(nn.Linear, 1, 1),  # a constructor, if a harmless one
    "getattr": lambda owned: Call(getattr, "text", "upper"),
    "load": lambda owned: Call(torch.load, str(owned)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_file_calls_is_refused_by_name_and_not_called(tmp_path, owned, name):
    file = hostile(tmp_path, extra=HOSTILE[name](owned))
    assert yolov5.recognises(file)
    with pytest.raises(UserError, match=r"bad\.pt: refused: it holds .*trust=True"):
        load_checkpoint(file)


def test_trusted_it_is_data_all_the_same(tmp_path, owned):
    file = hostile(tmp_path, extra=HOSTILE["system"](owned))
    with pytest.raises(UserError, match=r"refused: it holds a call of posix.system"):
        load_checkpoint(file, trust=True)


class Foreign:
    pass


def test_other_classes_are_let_through_as_data_where_trusted(tmp_path):
    file = hostile(tmp_path, extra=Foreign())
    with pytest.raises(UserError, match=f"refused: it holds {__name__}.Foreign,"):
        load_checkpoint(file)
    assert load_checkpoint(file, trust=True).model.nc == 2


def test_a_constructor_of_the_repository_is_not_called_either(tmp_path):
    with classic.repository():
        hostile_model = Call(classic.Conv, 1, 1)
        model = classic.stand_in(*classic.network("v6.0", 2))
    with pytest.raises(UserError, match=r"refused: it holds a call of models\.common\.Conv"):
        load_checkpoint(classic.write_classic(tmp_path / "a.pt", model, extra=hostile_model))


def archive(path, program, **tensors):
    """An archive of `torch.save` with a pickle of the test's own."""
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("a/data.pkl", program)
        for key, data in tensors.items():
            opened.writestr(f"a/data/{key}", data)
    return Archive(path)


def read(path, program, **tensors):
    return read_as_data(archive(path, program, **tensors), lambda name: name.startswith("models."))


INSTRUCTIONS = {
    "INST": b"(S'touch owned'\niposix\nsystem\n.",
    "OBJ": b"(cposix\nsystem\nS'touch owned'\no.",
    "EXT1": b"\x80\x02\x82\x01.",
    "NEWOBJ_EX": b"\x80\x04cmodels.common\nConv\n)}\x92.",
    "PERSID": b"P1\n.",
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_that_torch_does_not_write_are_refused(tmp_path, name):
    with pytest.raises(Refused, match=f"the pickle instruction {name}"):
        read(tmp_path / "a.pt", INSTRUCTIONS[name])


TRICKS = {
    "a state for a function": (b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.", "a state for a func"),
    "attributes of a class": (b"\x80\x02cmodels.common\nConv\n}X\x01\x00\x00\x00aK\x01sb.", "damaged"),
    "slots of a class": (b"\x80\x02cmodels.common\nConv\nN}X\x08\x00\x00\x00__init__K\x01s\x86b.", "damaged"),
    "arguments of a constructor": (b"\x80\x02cmodels.common\nConv\nK\x01\x85\x81.", "damaged"),
    "a state that is no dictionary": (b"\x80\x02cmodels.common\nConv\n)\x81K\x01b.", "whose state is no dictionary"),
    "a name within a class": (b"\x80\x04\x8c\x07builtins\x8c\x0cobject.mro\x93.", "damaged"),
    "a name within a class of ours": (b"\x80\x04\x8c\x08builtins\x8c\x0aobject.mro\x93.", "builtins.object.mro"),
    "a place beyond the end": (b"\x80\x02Nr\xff\xff\xff\x7f.", "a place beyond its end"),
    "no end": (b"\x80\x02(", "damaged"),
    "nothing": (b"", "damaged"),
}


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_with_the_stack_come_to_nothing(tmp_path, name):
    program, message = TRICKS[name]
    with pytest.raises((Refused, Damaged), match=message):
        read(tmp_path / "a.pt", program)


def test_states_stay_apart_from_attributes(tmp_path):
    found = read(tmp_path / "a.pt", b"\x80\x02cmodels.common\nConv\n)\x81}X\x08\x00\x00\x00childrenK\x01sb.")
    assert isinstance(found, Recorded)
    assert found.full == "models.common.Conv"
    assert found.state == {"children": 1}
    assert found.children == {}


class Saved(pickle.Pickler):
    """Pickles tensors as `torch.save` does, as references to bytes."""

    def persistent_id(self, thing):
        return thing.pid if isinstance(thing, Reference) else None


class Reference:
    def __init__(self, *pid):
        self.pid = pid


def tensor(storage, offset=0, size=(2,), stride=(1,)):
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


def tensors(path, storage, data=bytes(8), **shape):
    buffer = io.BytesIO()
    Saved(buffer, 2).dump(tensor(storage, **shape))
    made = archive(path, buffer.getvalue(), **{"0": data})
    return read_as_data(made, lambda name: False).read(made)


def test_tensors_are_views_of_their_bytes(tmp_path):
    data = torch.arange(6, dtype=torch.float32).numpy().tobytes()
    storage = Reference("storage", torch.FloatStorage, "0", "cpu", 6)
    found = tensors(tmp_path / "a.pt", storage, data, offset=1, size=(2, 2), stride=(1, 2))
    assert found.tolist() == [[1.0, 3.0], [2.0, 4.0]]


DAMAGED = {
    "more than stored": ({"count": 2}, {"size": (3,)}),
    "beyond the end": ({"count": 2}, {"offset": 1}),
    "stretched": ({"count": 2}, {"size": (10**9, 2), "stride": (0, 1)}),
    "negative": ({"count": 2}, {"size": (-2,)}),
    "another size": ({"count": 3}, {}),
    "no such bytes": ({"count": 2, "key": "1"}, {}),
    "shape and steps": ({"count": 2}, {"size": (1, 2)}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_tensors_that_are_not_stored_are_damage(tmp_path, name):
    where, shape = DAMAGED[name]
    storage = Reference("storage", torch.FloatStorage, where.get("key", "0"), "cpu", where["count"])
    with pytest.raises(Damaged):
        tensors(tmp_path / "a.pt", storage, **shape)


def test_a_strange_kind_of_storage_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"torch\.ComplexFloatStorage"):
        tensors(tmp_path / "a.pt", Reference("storage", torch.ComplexFloatStorage, "0", "cpu", 1))


def test_modules_without_end_are_damage():
    inside = Recorded.__new__(Recorded)
    inside.__setstate__({"_modules": {"a": inside, "b": inside}})
    with pytest.raises(Damaged, match="no end"):
        inside.tensors()


def test_the_names_in_a_file(tmp_path):
    model = classic.stand_in(*classic.network("v6.0", 2))
    found = names_in(Archive(classic.write_classic(tmp_path / "a.pt", model)))
    assert {"models.yolo.Model", "models.common.C3", "torch.nn.modules.conv.Conv2d"} <= set(found)


def test_damaged_files_say_so(tmp_path):
    classic.classic(tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        load_checkpoint(tmp_path / "b.pt")
    place = whole.index(b"running_var")
    (tmp_path / "c.pt").write_bytes(whole[:place] + b"running_xxx" + whole[place + 11 :])
    with pytest.raises(UserError, match=r"truncated or damaged|damaged checkpoint"):
        load_checkpoint(tmp_path / "c.pt")
    middle = bytearray(whole)
    with zipfile.ZipFile(tmp_path / "a.pt") as opened:
        middle[opened.getinfo("a/data/0").header_offset + 200] ^= 1  # a bit of a weight
    (tmp_path / "d.pt").write_bytes(middle)
    with pytest.raises(UserError, match=r"a damaged checkpoint of the YOLOv5 repository: Bad CRC"):
        load_checkpoint(tmp_path / "d.pt")


def test_what_a_file_stores_is_described(tmp_path):
    classic.classic(tmp_path / "a.pt")
    stored = yolov5.read(tmp_path / "a.pt").stored
    assert isinstance(stored["model.0.conv.weight"], Stored)
    assert stored["model.0.conv.weight"].size == (8, 3, 6, 6)
    assert stored["model.0.conv.weight"].dtype == torch.float16
