"""`yolo-os compare`, end to end: small trainings from the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from builders import listed_dataset
from conftest import ROOT

from yolo_os import UserError
from yolo_os.cli import main
from yolo_os.comparison.arms import Arm
from yolo_os.comparison.plan import Config
from yolo_os.heads import find_head
from yolo_os.integration import compare_run
from yolo_os.integration.checkpoint import load_checkpoint
from yolo_os.integration.compare import compare, dry_run
from yolo_os.integration.detect import Validation
from yolo_os.modes.compare import config_of, parse
from yolo_os.training.log import epochs_in

TINY = ["epochs=2", "imgsz=64", "batch=6", "nbs=6", "device=cpu", "optimizer=SGD", "lr0=0.001", "warmup_epochs=0"]


@pytest.fixture(scope="module")
def few(tiny_data, tmp_path_factory):
    """Twelve images to learn from, four to choose by and eight to evaluate on."""
    parts = {"train": ("train", slice(0, 12)), "val": ("val", slice(0, 4)), "test": ("test", slice(0, 8))}
    return listed_dataset(tiny_data, tmp_path_factory.mktemp("few") / "few.yaml", parts)


def figures(path):
    return {arm["name"]: arm for arm in json.loads(path.read_text())["arms"]}


def words(detector, few, *more):
    return ["compare", f"model={detector}", f"data={few}", *TINY, *more]


@pytest.fixture
def opened(monkeypatch):
    """Which images were opened while a model trains, is shifted or judged, and while it is evaluated on test."""
    from ultralytics.data.base import BaseDataset

    seen = {"before": set(), "test": set()}
    phase = ["before"]
    load, begin, evaluate = BaseDataset.load_image, Validation.__init__, compare_run._evaluate

    def load_image(self, i, *given, **named):
        seen[phase[0]].add(os.path.realpath(self.im_files[i]))
        return load(self, i, *given, **named)

    def opening(self, *given, split, **named):
        phase[0] = "test" if split == "test" else "before"
        begin(self, *given, split=split, **named)

    def evaluated(*given):
        try:
            return evaluate(*given)
        finally:
            phase[0] = "before"

    monkeypatch.setattr(BaseDataset, "load_image", load_image)
    monkeypatch.setattr(Validation, "__init__", opening)
    monkeypatch.setattr(compare_run, "_evaluate", evaluated)
    return seen


def test_a_comparison_from_end_to_end(detector, few, in_tmp, capsys, opened):
    """Trained arms, a shift after one, and an arm that fails, whose error is recorded while the rest goes on."""
    arms = ["stock", {"name": "bad", "optimizer": "Nothing"}, "sos", {"name": "half", "after": "stock", "keep": 0.5}]
    config = {"model": str(detector), "data": str(few), "arms": arms, "seeds": 2, "replicates": 40}
    (in_tmp / "c.yaml").write_text(yaml.safe_dump(config))
    command = ["compare", "config=c.yaml", *TINY, "epochs=1", "workers=0", "project=p", "json=j.json", "trace=True"]
    assert main(command) == 1  # not all runs are there
    out = capsys.readouterr().out
    found, folder = figures(in_tmp / "j.json"), in_tmp / "p" / "exp"
    assert list(found) == ["stock", "bad", "sos", "half"]
    assert (found["stock"]["difference"], found["stock"]["low"], found["stock"]["high"]) == (0, 0, 0)
    for name in ("sos", "half"):
        arm = found[name]
        assert arm["low"] <= arm["difference"] <= arm["high"]
        assert arm["mean"] - found["stock"]["mean"] == pytest.approx(arm["difference"])
        assert arm["seeds"] == [0, 1]
        assert arm["squared_norm_ratio"] < 0.95
        assert set(arm["loss"]) == {"train", "val", "test"}
        assert arm["trace"] > 0
        assert arm["verdict"] in out
    assert found["stock"]["std"] is not None
    content = json.loads((in_tmp / "j.json").read_text())
    assert found["bad"]["mean"] is None
    assert [each["arm"] for each in content["failures"]] == ["bad", "bad"]
    assert all("Nothing" in each["error"] for each in content["failures"])

    page = (folder / "report.html").read_text()
    assert page.count("data:image/") >= 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert found["sos"]["verdict"] in page.replace("&#x27;", "'")
    for name in ("differences.png", "cost.png", "curves.png", "arms.csv", "classes.csv", "report.md", "compare.json"):
        assert (folder / name).stat().st_size > 100, name

    tested = {os.path.realpath(line) for line in (few.parent / "few-test.txt").read_text().split()}
    assert opened["test"] == tested
    assert len(opened["before"]) == 16  # train and val
    assert not opened["before"] & tested  # no test image is seen by training, selection or shift

    made = {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")}
    assert len(made) == 6
    assert main(["compare", f"folder={folder}", "replicates=40", "json=again.json"]) == 0
    assert figures(in_tmp / "again.json") == found
    with pytest.raises(UserError, match="made with other settings"):
        compare(config_of(parse([*command[1:], "lr0=0.5"])), folder, workers=0)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("result.json")} == made


def test_a_pull_without_end_holds_all_but_a_new_head(detector, few, in_tmp, capsys):
    """All but the head stays where it began; what another strength made is not taken for this one's."""
    arms = ["stock", {"name": "held", "pull": 1e9}]
    config = {"model": str(detector), "data": str(few), "arms": arms, "new_head": True}
    (in_tmp / "c.yaml").write_text(yaml.safe_dump(config))
    command = ["compare", "config=c.yaml", *TINY, "epochs=1", "seeds=1", "workers=0", "project=p", "replicates=20"]
    assert main(command) == 0
    start = load_checkpoint(detector).model.half().state_dict()
    moved = {}
    for arm in ("stock", "held"):
        made = load_checkpoint(in_tmp / "p" / "exp" / "runs" / "few" / f"{arm}-0" / "weights" / "best.pt").model.half()
        changed = [name for name, weight in made.named_parameters() if not torch.equal(weight, start[name])]
        moved[arm] = {int(name.split(".")[1]) for name in changed}
    assert moved["held"] == {len(made.model) - 1}
    assert len(moved["stock"]) > 1
    (in_tmp / "c.yaml").write_text(yaml.safe_dump({**config, "arms": ["stock", {"name": "held", "pull": 3}]}))
    assert main(command) == 2
    assert "made with other settings (pull: 1000000000.0, now 3)" in capsys.readouterr().err


def test_what_was_killed_goes_on(detector, few, in_tmp):
    """After kill -9 the runs that were done stay, the one that ran resumes, and its process does not outlive it."""
    command = words(detector, few, "arms=stock,toward", "seeds=1", "project=p", "replicates=40", "epochs=15")
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (in_tmp / "out.txt").open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", "yolo_os", *command], env=variables, stdout=out, stderr=out)
    last = in_tmp / "p" / "exp" / "runs" / "few" / "stock-0" / "weights" / "last.pt"
    while not last.is_file():
        assert process.poll() is None, (in_tmp / "out.txt").read_text()
        time.sleep(0.1)
    time.sleep(0.05)  # until the first checkpoint is whole, before the next one is written
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    child.wait(timeout=30)
    folder = in_tmp / "p" / "exp"
    assert not list(folder.rglob("result.json"))
    before = (last.parent.parent / "results.csv").read_text().splitlines()[1]

    assert main([*command, "workers=0", "json=j.json"]) == 0
    content = json.loads((in_tmp / "j.json").read_text())
    assert content["runs"] == {"planned": 2, "done": 2}
    rows = (last.parent.parent / "results.csv").read_text().splitlines()
    assert rows[1] == before  # the epochs before the end are those of the first process
    # Killed between an epoch's row and its checkpoint, it makes that epoch once more.
    assert [int(row["epoch"]) for row in epochs_in(last.parent.parent / "results.csv")] == list(range(1, 16))
    [result] = [json.loads(file.read_text()) for file in folder.rglob("stock-0/result.json")]
    assert {name: len(curve) for name, curve in result["curves"].items()} == dict.fromkeys(result["curves"], 15)
    assert any("interrupted and resumed: 1 training, with" in warning for warning in content["warnings"])
    assert "one seed" in content["verdict"]


def test_the_plan_and_its_time(detector, few, in_tmp, capsys):
    assert (
        main(words(detector, few, "arms=stock,toward", "seeds=2", "fraction=4,1.0", "project=p", "dry_run=True")) == 0
    )
    out = capsys.readouterr().out
    assert "8 runs in" in out
    assert "toward, seed 1, few-4: shift of stock, to do" in out
    assert re.search(r"estimated time: \d+ (s|min)", out)
    assert not (in_tmp / "p").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=a.yaml", "arms=stock,sos"], "model=... is missing"),
        (["model=a.pt", "data=a.yaml", "arms=stock,sos", "seeds=0"], "seeds=0"),
        (["model=a.pt", "data=a.yaml", "arms=stock,sos", "seeds=[1,1]"], "names one twice"),
        (["model=a.pt", "data=a.yaml", "arms=stock,sos", "fraction=2.5"], "fraction=2.5"),
        (["model=a.pt", "data=a.yaml,a.yaml", "arms=stock,sos"], "names one data set twice"),
        (["model=a.pt", "data=a.yaml", "arms=stock,sos", "held_out=1.5"], "held_out=1.5"),
        (["model=a.pt", "data=a.yaml", "arms=stock,sos", "seed=1"], "did you mean seeds"),
        (["model=a.pt", "data=a.yaml", "arms=stock,sos", "epoch=1"], "epoch"),
        (["folder=nowhere", "epochs=3"], "leave epochs=3 away"),
        (["folder=nowhere", "model=a.pt"], "leave model away"),
        (["model=a.pt", "data=a.yaml", "arms=stock,sos", "margin=-1"], "margin=-1"),
    ],
)
def test_bad_words(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        config_of(parse(words))


def test_what_is_typed_comes_before_the_file_though_it_is_the_default(in_tmp):
    (in_tmp / "c.yaml").write_text("margin: 0.05\nreplicates: 50\nseeds: 7\n")
    read = parse(["config=c.yaml", "margin=0.005"])
    assert (read["margin"], read["replicates"], read["seeds"]) == (0.005, 50, 7)


def test_names_on_the_line_are_arms_of_the_file_first(in_tmp):
    arms = ["stock", {"name": "freeze", "freeze": 3}, {"name": "back", "after": "freeze", "toward": True}]
    (in_tmp / "c.yaml").write_text(yaml.safe_dump({"model": "m.pt", "data": "d", "arms": arms}))
    (in_tmp / "m.pt").touch()

    def chosen(names):
        return config_of(parse(["config=c.yaml", f"arms={names}"])).arms

    assert chosen("stock,freeze,back") == config_of(parse(["config=c.yaml"])).arms
    assert [arm.to_dict() for arm in chosen("sos,freeze")] == [
        {"name": "sos", "os": "sos"},
        {"name": "freeze", "freeze": 3},
    ]
    with pytest.raises(UserError, match="after=freeze is no arm before it"):
        chosen("stock,back")
    with pytest.raises(UserError, match=r"none of the arms stock, .*, back"):
        chosen("stock,nothing")


def test_what_the_line_does_not_name_need_not_be_right(in_tmp):
    arms = [{"name": "bad", "after": "x"}, {"name": "mild", "like": "base", "lr0": 0.1}, {"name": "base", "freeze": 2}]
    (in_tmp / "c.yaml").write_text(yaml.safe_dump({"model": "m.pt", "data": "d", "arms": arms}))
    (in_tmp / "m.pt").touch()
    _, mild = config_of(parse(["config=c.yaml", "arms=stock,mild"])).arms
    assert mild.train == {"lr0": 0.1, "freeze": 2}
    arms = [{"name": "freeze", "like": "freeze", "lr0": 0.1}, {"name": "a", "like": "a"}]
    (in_tmp / "c.yaml").write_text(yaml.safe_dump({"model": "m.pt", "data": "d", "arms": arms}))
    _, own = config_of(parse(["config=c.yaml", "arms=stock,freeze"])).arms
    assert own.train == {"freeze": "backbone", "lr0": 0.1}
    with pytest.raises(UserError, match="like=a is no arm before it"):
        config_of(parse(["config=c.yaml", "arms=stock,a"]))


def test_a_comparison_is_printed_again_without_what_it_was_made_of(detector, few, in_tmp, capsys):
    (in_tmp / "mine.yaml").write_text("keep: 0.7\n")
    arms = ["stock", {"name": "half", "after": "stock", "recipe": "mine.yaml"}]
    (in_tmp / "c.yaml").write_text(yaml.safe_dump({"model": str(detector), "data": str(few), "arms": arms}))
    command = ["compare", "config=c.yaml", *TINY, "epochs=1", "seeds=1", "workers=0", "project=p", "replicates=20"]
    assert main([*command, "json=j.json"]) == 0
    (in_tmp / "mine.yaml").unlink()
    assert main(["compare", "folder=p/exp", "replicates=20", "json=again.json"]) == 0
    assert figures(in_tmp / "again.json") == figures(in_tmp / "j.json")
    capsys.readouterr()
    assert main([*command, "name=new"]) == 2
    assert "arm half: cannot read the recipe mine.yaml" in capsys.readouterr().err
    assert not (in_tmp / "p" / "new").exists()


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        (Arm("b", after="stock", shift={"recipe": "bad"}), "arm b: recipe=bad: no such file"),
        (Arm("b", after="stock", shift={"keep": 2}), "arm b: keep=2"),
        (Arm("b", after="stock", shift={"toward": True, "statistics": 7}), "arm b: statistics=7"),
        (Arm("b", after="stock", shift={"toward": True, "shares": [2]}), "arm b: shares=2"),
        (Arm("b", after="stock", shift={"toward": True, "retain": [1]}), "arm b: data=1: '1' does not exist"),
        (Arm("b", after="nope", shift={"keep": 0.5}), "arm b: after=nope"),
        (Arm("b", pull=float("nan")), "arm b: pull=nan"),
        (Arm("b", train={"no_such_key": 1}), "arm b: .*no_such_key"),
        (Arm("b", train={"freeze": np.int64(3)}), "a setting is neither text nor a plain number"),
        (Arm("b", train={"model": Path("m.pt")}), "a setting is neither text nor a plain number"),
    ],
)
def test_arms_from_python_are_looked_at_before_anything_is_written(detector, few, in_tmp, arm, said):
    config = Config(str(detector), (str(few),), (Arm("stock"), arm), (0,), train={"epochs": 1, "imgsz": 64})
    with pytest.raises(UserError, match=said):
        compare(config, in_tmp / "p" / "x")
    assert not (in_tmp / "p").exists()
    with pytest.raises(UserError, match=said):
        dry_run(config, in_tmp / "p" / "x")


@pytest.mark.parametrize("device", ["cuda:99", "99", "98,99", "0"])
def test_a_device_that_is_not_there_leaves_nothing(device, detector, few, in_tmp, capsys):
    if device == "0" and torch.cuda.is_available():
        pytest.skip("it is there")
    assert main([*words(detector, few, "arms=stock,sos", "project=p"), f"device={device}"]) == 2
    assert capsys.readouterr().err.startswith(f"yolo-os: error: device={device}: ")
    config = Config(str(detector), (str(few),), (Arm("stock"), Arm("b", train={"device": device})), (0,))
    with pytest.raises(UserError, match=f"^device={device}: "):
        compare(config, in_tmp / "p" / "x")
    assert not (in_tmp / "p").exists()


def test_a_setting_that_came_later_throws_no_run_away(detector, few, in_tmp):
    """A run that was interrupted before there was `pull` goes on."""
    command = words(detector, few, "arms=stock,sos", "seeds=1", "project=p", "replicates=20", "epochs=1", "workers=0")
    command.append("weight_decay=0.00001")  # 1e-05 in JSON, which YAML takes for text
    assert main(command) == 0
    folder = in_tmp / "p" / "exp" / "runs" / "few" / "stock-0"
    spec = json.loads((folder / "run.json").read_text())
    del spec["settings"]["pull"]
    (folder / "run.json").write_text(json.dumps(spec))
    (folder / "result.json").unlink()
    best = (folder / "weights" / "best.pt").stat().st_mtime_ns
    assert main(command) == 0
    assert (folder / "result.json").is_file()
    assert (folder / "weights" / "best.pt").stat().st_mtime_ns == best


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        ({"keep": 5}, "keep=5"),
        ({"recipe": "nope.yaml"}, "nope.yaml"),
        ({"toward": True, "shares": 5}, "shares=5"),
        ({"toward": True, "statistics": "some"}, "statistics=some"),
        ({"toward": "nope.pt"}, "toward=nope.pt: no such file"),
        ({"toward": True, "retain": "nope.yaml"}, "nope.yaml"),
    ],
    ids=str,
)
def test_bad_values_of_a_shift_are_refused_before_anything_is_trained(detector, few, in_tmp, shift, said, capsys):
    arms = ["stock", {"name": "b", "after": "stock", **shift}]
    (in_tmp / "c.yaml").write_text(yaml.safe_dump({"model": str(detector), "data": str(few), "arms": arms}))
    assert main(["compare", "config=c.yaml", *TINY, "dry_run=True"]) == 2
    error = capsys.readouterr().err
    assert "arm b: " in error and said in error


def test_more_images_than_there_are_are_refused_by_the_plan_too(detector, few, in_tmp, capsys):
    assert main(words(detector, few, "arms=stock,toward", "fraction=1000", "dry_run=True")) == 2
    assert "12 images to learn from" in capsys.readouterr().err


def test_no_report_lands_on_what_it_is_made_of(detector, few, in_tmp, capsys):
    """Files that arms name are read as well, and so is what the comparison has made so far."""
    (in_tmp / "old.pt").write_bytes(detector.read_bytes())
    arms = ["stock", {"name": "back", "after": "stock", "toward": "old.pt"}]
    (in_tmp / "c.yaml").write_text(yaml.safe_dump({"arms": arms}))
    command = words(detector, few, "config=c.yaml", "seeds=1", "project=p", "dry_run=True")
    assert main([*command, "json=old.pt"]) == 2
    record = in_tmp / "p" / "exp" / "compare.yaml"
    record.parent.mkdir(parents=True)
    record.write_text("arms: []\n")
    assert main([*command, f"json={record}"]) == 2
    assert main(["compare", "folder=p/exp", f"json={record}"]) == 2
    assert capsys.readouterr().err.count("the input is never changed") == 3
    assert record.read_text() == "arms: []\n"
    assert main([*command, "json=p/exp/compare.json"]) == 0


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"optimizr": "SGD"}, "optimizr"),
        ({"os.evry": 2}, "evry"),
        ({"lr0": "text"}, "lr0"),
        ({"classes": [1]}, "classes="),
        ({"model": "nowhere.pt"}, "arm b: "),
        ({"model": "yolov8n-seg.yaml"}, "is of the task segment"),
    ],
)
def test_bad_arms_are_refused_before_anything_is_trained(detector, few, in_tmp, arm, said, capsys):
    content = {"model": str(detector), "data": str(few), "arms": ["stock", {"name": "b", **arm}]}
    (in_tmp / "c.yaml").write_text(yaml.safe_dump(content))
    assert main(["compare", "config=c.yaml", *TINY, "project=p"]) == 2
    assert said in capsys.readouterr().err
    assert not (in_tmp / "p").exists()


def test_an_arm_may_start_from_another_model(detector, few, in_tmp, capsys):
    """Its start is told by what is in the file: with other weights there, what was made from it is refused."""
    contents = torch.load(detector, weights_only=False)
    for layer in find_head(contents["model"]).layers:
        layer.module.weight.data.mul_(0.5)
    torch.save(contents, in_tmp / "less.pt")
    config = {"arms": ["stock", {"name": "less", "model": "less.pt"}], "epochs": 1, "lr0": 0.0}
    (in_tmp / "c.yaml").write_text(yaml.safe_dump(config))
    command = words(detector, few, "config=c.yaml", "seeds=1", "workers=0", "replicates=20", "project=p", "json=j.json")
    assert main([word for word in command if word not in ("lr0=0.001", "epochs=2")]) == 0
    assert figures(in_tmp / "j.json")["less"]["squared_norm_ratio"] == pytest.approx(0.25, abs=0.01)
    capsys.readouterr()
    (in_tmp / "less.pt").write_bytes(detector.read_bytes())
    assert main([word for word in command if word not in ("lr0=0.001", "epochs=2")]) == 2
    assert "made with other settings (model_sha256" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused_before_anything_is_trained(detector, few, in_tmp, capsys):
    contents = torch.load(detector, weights_only=False)
    next(contents["model"].parameters()).data.flatten()[0] = float("nan")
    torch.save(contents, in_tmp / "nan.pt")
    assert main(["compare", "model=nan.pt", f"data={few}", "arms=stock,budget", *TINY, "project=p"]) == 2
    assert "model=nan.pt: the model's weights are not finite" in capsys.readouterr().err
    assert not (in_tmp / "p").exists()


def test_no_comparison_in_a_folder(in_tmp, capsys):
    assert main(["compare", "folder=nowhere"]) == 2
    assert "holds no comparison" in capsys.readouterr().err


@pytest.mark.slow
def test_on_ray_with_two_workers_of_which_one_is_killed(detector, few, in_tmp, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default they give way to all else on the machine
    import threading

    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    folder, killed = in_tmp / "p" / "exp", []

    def kill():
        """The Ray worker above the first process that works for a run."""
        while not killed:
            for process in psutil.process_iter(["cmdline"]):
                line = process.info["cmdline"] or []
                if compare_run.__name__ in line and any(str(folder) in part for part in line):
                    process.parent().kill()
                    killed.append(process)
                    return
            time.sleep(0.2)

    threading.Thread(target=kill, daemon=True).start()
    try:
        command = words(detector, few, "arms=stock,sos", "seeds=2", "project=p", "ray=True", "replicates=40", "json=j")
        assert main(command) == 0
    finally:
        ray.shutdown()
    assert killed
    killed[0].wait(timeout=30)  # its run's process ended with it
    assert json.loads((in_tmp / "j").read_text())["runs"] == {"planned": 4, "done": 4}
