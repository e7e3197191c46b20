import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_os.errors import UserError
from yolo_os.settings import Key, parse_pairs, parse_value

KEYS = (
    Key("model", (str,), None, "the model", required=True),
    Key("imgsz", (int,), 640, "size"),
    Key("lr", (float,), 0.1, "rate"),
    Key("plots", (bool,), False, "plots"),
    Key("method", (str,), "sos", "method", choices=("os", "sos")),
    Key("extra", (int, type(None)), 3, "left out", filled=False),
)


def test_values_defaults_and_spaced_forms():
    options = parse_pairs(["model", "=", "a.pt", "imgsz=", "320", "lr", "=1", "plots"], KEYS)
    assert options == {"model": "a.pt", "imgsz": 320, "lr": 1.0, "plots": True, "method": "sos"}
    assert isinstance(options["lr"], float)


def test_text_keys_keep_what_was_typed():
    assert parse_pairs(["model=007"], KEYS)["model"] == "007"


def test_keys_without_filling_appear_only_when_given():
    assert "extra" not in parse_pairs(["model=a"], KEYS)
    assert parse_pairs(["model=a", "extra=None"], KEYS)["extra"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=a", "imgzs=3"], "unknown key 'imgzs': did you mean imgsz"),
        (["model=a", "imgsz=big"], "imgsz=big: takes a whole number"),
        (["model=a", "imgsz=True"], "imgsz=True: takes a whole number"),
        (["model=a", "imgsz=3.5"], "takes a whole number"),
        (["model=a", "imgsz=1", "imgsz=2"], "given twice"),
        (["model=a", "imgsz"], "has no value"),
        (["model=a", "imgsz="], "has no value"),
        (["imgsz=3"], "model=... is missing"),
        (["model=a", "method=soss"], "use one of os, sos: did you mean sos"),
    ],
)
def test_errors_name_the_key(words, message):
    with pytest.raises(UserError, match=message.replace("...", r"\.\.\.")):
        parse_pairs(words, KEYS)


EXAMPLES = [
    "320",
    "0.5",
    "1e-3",
    "True",
    "false",
    "none",
    "a.pt",
    "[1, 2]",
    "(3,4)",
    "'x'",
    "path/to=x",
    "0x10",
    "-1",
    "3 4",
    "inf",
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_reads_values_as_ultralytics_does(text):
    from ultralytics.cfg import smart_value

    assert parse_value(text) == smart_value(text)


@given(
    st.one_of(
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.none(),
        st.lists(st.integers()),
    )
)
def test_reads_back_what_python_writes(value):
    assert parse_value(str(value)) == value
