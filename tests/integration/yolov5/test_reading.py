"""A file of the YOLOv5 repository is read as data: whatever it names, nothing of it runs."""

import os
import zipfile

import classic
import pytest
import torch
from torch import nn

from yolo_os.errors import UserError
from yolo_os.integration import yolov5
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.unpickle import Damaged, Recorded, Refused, read_as_data
from yolo_os.integration.yolov5.recorded import children, tensors


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


def read(path, program):
    """What an archive with a pickle of the test's own holds, as data."""
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("a/data.pkl", program)
    return read_as_data(path, lambda name: name.startswith("models."))[0]


TRICKS = {
    "INST": (b"(S'touch owned'\niposix\nsystem\n.", "the pickle instruction INST"),
    "OBJ": (b"(cposix\nsystem\nS'touch owned'\no.", "the pickle instruction OBJ"),
    "attributes of a class": (b"\x80\x02cmodels.common\nConv\n}X\x01\x00\x00\x00aK\x01sb.", "a state for a _Name"),
    "arguments of a constructor": (b"\x80\x02cmodels.common\nConv\nK\x01\x85\x81.", "Conv made with arguments"),
    "a call of a class": (b"\x80\x02cmodels.common\nConv\n)R.", r"a call of models\.common\.Conv"),
    "a state that is no dictionary": (b"\x80\x02cmodels.common\nConv\n)\x81K\x01b.", "whose state is no dictionary"),
    "a class as a hook": (
        b"\x80\x02cmodels.common\nConv\n)\x81}X\x04\x00\x00\x00hookcposix\nsystem\nsb.",
        r"posix\.system as data",
    ),
    "itself": (b"\x80\x02cmodels.common\nConv\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.", "that holds itself"),
}


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_come_to_nothing(tmp_path, name):
    program, message = TRICKS[name]
    with pytest.raises((Refused, Damaged), match=message):
        read(tmp_path / "a.pt", program)


def test_objects_are_held_as_data(tmp_path):
    found = read(tmp_path / "a.pt", b"\x80\x02cmodels.common\nConv\n)\x81}X\x04\x00\x00\x00kindK\x01sb.")
    assert found == Recorded("models.common.Conv", {"kind": 1})
    assert found.kind == "Conv"
    assert children(found) == {}


def test_modules_that_are_none_are_damage():
    for held in ({"a": 1}, [1], "text"):
        with pytest.raises(Damaged, match="the modules of a Conv are damaged"):
            children(Recorded("models.common.Conv", {"_modules": held}))


def test_tensors_lie_in_the_bytes_of_the_file(tmp_path):
    model = classic.classic(tmp_path / "a.pt")
    contents, storages = read_as_data(tmp_path / "a.pt", lambda name: name.startswith(("models.", "torch.nn.")))
    found = tensors(contents["model"])
    assert list(found) == list(model.state_dict())
    assert found["model.0.conv.weight"].dtype == torch.float16
    torch.testing.assert_close(found["model.0.conv.weight"].float(), model.state_dict()["model.0.conv.weight"])
    assert {each.untyped_storage().data_ptr() for each in found.values()} <= {
        storage.data_ptr() for storage in storages.values()
    }


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
    with pytest.raises(UserError, match=r"a damaged checkpoint of the YOLOv5 repository: .*Bad CRC"):
        load_checkpoint(tmp_path / "d.pt")
