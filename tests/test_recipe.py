import pytest
import yaml

from yolo_os.errors import UserError
from yolo_os.recipe import ShiftRecipe, recipe_keys


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sso"}, "method=sso: use one of .*did you mean"),
        ({"samples": 0}, "samples=0: takes"),
        ({"samples": 1.5}, "samples=1.5: takes"),
        ({"samples": True}, "samples=True: takes"),
        ({"samples": "many"}, "samples=many: takes"),
        ({"images": 0}, "images=0"),
        ({"held_out": -1}, "held_out=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"keep": 1}, "keep=1.0: takes a share"),
        ({"max_loss_rise": -0.1}, "max_loss_rise=-0.1"),
        ({"rtol": 2.0}, "rtol=2.0"),
        ({"sampling": "all"}, "sampling=all: use one of uniform"),
        ({"sample": 3}, "unknown key 'sample': did you mean samples"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        ShiftRecipe.from_dict(settings)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(AttributeError):
        ShiftRecipe().samples = 3


def test_rows_are_a_number_or_a_share():
    assert ShiftRecipe(samples=48).rows_for(64) == 48
    assert ShiftRecipe(samples=0.75).rows_for(64) == 48
    assert ShiftRecipe(samples=0.001).rows_for(64) == 1


def test_selects_by_role_and_pattern():
    recipe = ShiftRecipe(layers="cls, one2one_cv2.*")
    assert recipe.selects("cv3.0", "cls")
    assert recipe.selects("one2one_cv2.1", "box")
    assert not recipe.selects("cv2.1", "box")
    assert ShiftRecipe().selects("anything", "mask")


def test_yaml_round_trip(tmp_path):
    recipe = ShiftRecipe(method="os", images=7, rtol=1e-5)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe.to_dict()))
    assert ShiftRecipe.from_yaml(file) == recipe


@pytest.mark.parametrize("name", ["budget", "os", "sos", "sos_paper"])
def test_shipped_recipes_load_by_name(name):
    assert ShiftRecipe.from_yaml(name).method == name.split("_")[0]


def test_the_shipped_sos_recipe_is_the_default_of_sos():
    assert ShiftRecipe.from_yaml("sos") == ShiftRecipe(method="sos")


def test_the_shipped_budget_recipe_is_the_default():
    assert ShiftRecipe.from_yaml("budget") == ShiftRecipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: [", "is no YAML"),
        ("- 1", "holds no settings"),
        ("", "holds no settings"),
        ("metod: os", "mine.yaml: unknown key 'metod'"),
    ],
)
def test_bad_yaml_says_where(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        ShiftRecipe.from_yaml(file)


def test_missing_recipe_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the recipe .*none\.yaml"):
        ShiftRecipe.from_yaml(tmp_path / "none.yaml")


def test_a_mistyped_shipped_recipe_is_told_the_names(in_tmp):
    (in_tmp / "os").mkdir()  # a folder of that name does not stand in the way
    assert ShiftRecipe.from_yaml("os").method == "os"
    with pytest.raises(UserError, match=r"recipe=bugdet: no such file.*budget, os, sos, sos_paper"):
        ShiftRecipe.from_yaml("bugdet")


def test_keys_are_the_settings():
    assert [key.name for key in recipe_keys()] == list(ShiftRecipe().to_dict())
    assert not any(key.filled for key in recipe_keys())


def test_the_defaults_of_a_training_stand_in_one_file(tmp_path, monkeypatch, capsys):
    """The command line, its help and `SOS()` all follow the shipped file when it is changed."""
    import importlib
    from pathlib import Path

    from yolo_os import SOS, recipe
    from yolo_os.modes import train

    original = recipe.resource
    changed = yaml.safe_load(original("configs/train.yaml").read_text()) | {"keep": 0.77, "every": 5, "start": 0.25}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(changed))

    def resource(name: str) -> Path:
        return tmp_path / "train.yaml" if name == "configs/train.yaml" else original(name)

    before = SOS()
    assert (before.recipe.keep, before.schedule.every, before.schedule.start) == (0.9, "epoch", 0.7)
    monkeypatch.setattr(recipe, "resource", resource)
    try:
        for sos in (SOS(), importlib.reload(train).parse(["model=x.pt", "data=y.yaml"])["sos"]):
            assert (sos.recipe.keep, sos.schedule.every, sos.schedule.start) == (0.77, 5, 0.25)
            assert sos.final == before.final
        assert {key.name: key.default for key in train.KEYS}["os.keep"] == 0.77
    finally:
        monkeypatch.undo()
        importlib.reload(train)
