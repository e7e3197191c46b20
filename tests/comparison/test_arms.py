"""Arms: ready ones, those of a file, and what is refused."""

from __future__ import annotations

import pytest

from yolo_os import UserError
from yolo_os.comparison.arms import READY, read_arms


def test_every_ready_arm_can_be_read_and_written():
    arms = read_arms(list(READY))
    assert [arm.name for arm in arms] == list(READY)
    assert read_arms([arm.to_dict() for arm in arms]) == arms


def test_an_arm_without_settings_stays_so_whatever_its_name():
    arms = read_arms(["stock", {"name": "sos", "like": "stock"}])
    assert arms[1].os == arms[1].train == {}
    assert read_arms([arm.to_dict() for arm in arms]) == arms


def test_settings_go_where_they_belong():
    stock, mine, half, back = read_arms(
        {
            "stock": None,
            "mine": {"lr0": 0.001, "os.keep": 0.8, "os": "sos"},
            "half": {"like": "mine", "epochs": 5, "lr0": "x0.5"},
            "back": {"after": "mine", "toward": True, "retain": "old.yaml"},
        }
    )
    assert (stock.train, stock.os, stock.after) == ({}, {}, None)
    assert (mine.train, mine.os) == ({"lr0": 0.001}, {"keep": 0.8, "os": "sos"})
    assert (half.train, half.os, half.rate) == ({"lr0": "x0.5", "epochs": 5}, mine.os, 0.5)
    assert (back.after, back.shift, back.train) == ("mine", {"toward": True, "retain": ["old.yaml"]}, {})


def test_a_factor_is_of_what_the_other_arms_have():
    _, decay, rate = read_arms("stock,weight_decay_x10,low_lr")
    assert decay.settings({"weight_decay": 0.001}, {"weight_decay": 0.5}) == {"weight_decay": 0.01}
    assert decay.settings({}, {"weight_decay": 0.0005})["weight_decay"] == pytest.approx(0.005)
    assert rate.settings({"lr0": 0.1}, {}) == {"lr0": 0.1}  # the callback scales it, and what optimizer=auto chooses
    assert rate.rate == 0.1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("stock", "at least two"),
        ("stock,stock", "given twice"),
        ("stock,nothing", "none of the arms stock, "),
        ("stock,../x", "letters, digits"),
        ([{"name": "a", "lr0": 1}, {"name": "b", "data": "x.yaml"}], "data= is the same for all arms"),
        ([{"name": "a", "lr0": 1}, {"name": "b", "seed": 3}], "seed="),
        ([{"name": "a", "lr0": 1}, {"name": "b", "after": "c"}], "after=c"),
        (["toward", "stock"], "no arm before it"),
        (["stock", "toward", {"name": "b", "after": "toward"}], "is a shift itself"),
        (["stock", {"name": "b", "after": "stock", "epochs": 3}], "unknown key 'epochs'"),
        (["stock", {"name": "b", "after": "stock", "retain": "x"}], "without toward="),
        (["stock", {"name": "b", "after": "stock", "statistics": True}], "without toward="),
        (["stock", {"name": "b", "after": "stock", "toward": True, "keep": 0.5}], "keep= is for a shift of the pred"),
        (["stock", {"name": "b", "jitter": -1}], "jitter=-1"),
        (["stock", {"name": "b", "pull": 0}], "pull=0 takes a number above 0"),
        (["stock", {"name": "b", "pull": "x3"}], "pull=x3 takes a number"),
        (["stock", {"name": "b", "pull": 10**400}], "takes a number above 0"),
        (["stock", {"name": "b", "jitter": float("nan")}], "jitter=nan"),
        (["stock", {"name": "b", "after": "stock", "toward": True, "retain_drop": float("nan")}], "retain_drop=nan"),
        (["stock", {"name": "b", "after": "stock", "pull": 3}], "unknown key 'pull'"),
        (["stock", {"name": "b", "like": "c"}], "like=c"),
        (7, "takes names"),
    ],
)
def test_what_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        read_arms(given)


def test_arms_are_called_what_they_are():
    """Names that look like numbers, or like nothing, are names."""
    _, half = read_arms([{"name": "1.50", "lr0": 1}, {"name": "half", "after": "1.50", "keep": 0.5}])
    assert half.after == "1.50"
    none, back = read_arms([{"name": "none", "lr0": 1}, {"name": "back", "after": "none", "keep": 0.5}])
    assert (none.train, back.after) == ({"lr0": 1}, "none")
    _, same = read_arms([{"name": "11", "lr0": 1}, {"name": "b", "like": 11}])
    assert same.train == {"lr0": 1}
    with pytest.raises(UserError, match="arm a is described twice"):
        read_arms("stock,a", [{"name": "a", "lr0": 1}, {"name": "a", "lr0": 2}])


def test_a_factor_of_no_number_is_refused():
    _, arm = read_arms(["stock", {"name": "b", "optimizer": "x2"}])
    with pytest.raises(UserError, match="is no number"):
        arm.settings({}, {"optimizer": "auto"})
