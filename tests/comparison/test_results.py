"""What the runs in a folder come to: several data sets and fractions, missing and failed runs, a report's files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from yolo_os import UserError
from yolo_os.comparison.arms import read_arms
from yolo_os.comparison.plan import FAILURE, FOUND, RESULT, TRUTH, Clock, Config, duration, make_plan, runs_of
from yolo_os.comparison.report import markdown
from yolo_os.comparison.resampling import Found, Truth, draws, resample
from yolo_os.comparison.results import recorded, summarise
from yolo_os.comparison.statistics import mean_of, paired
from yolo_os.files import write_json
from yolo_os.plots.compare_page import write_report

CONFIG = Config("m.pt", ("x/one.yaml", "x/two.yaml"), read_arms("stock,sos,freeze,toward"), (0, 1, 2), (10, 1.0))


def truth_of(number, images=8):
    random = np.random.default_rng(number)
    image = np.repeat(np.arange(images), 2)
    corner = random.integers(1, 60, (len(image), 2)).astype(float)
    box = np.concatenate([corner, corner + 30], axis=1)
    files = tuple(f"{place}.jpg" for place in range(images))
    return Truth(("cat", "dog"), files, image, np.tile([0, 1], images), box, np.zeros(len(image), dtype=bool))


def found_in(truth, random):
    """Most boxes, a little off."""
    kept = random.random(len(truth.image)) < 0.8
    box = truth.box[kept] + random.integers(-4, 5, (int(kept.sum()), 1))
    return Found(truth.image[kept], truth.class_index[kept], box, random.random(int(kept.sum())))


@pytest.fixture
def folder(tmp_path):
    """A comparison of which all runs are done but for those of `freeze`: one failed, and others are to do."""
    CONFIG.save(tmp_path)
    truths = {name: truth_of(number) for number, name in enumerate(CONFIG.names())}
    for name, truth in truths.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        truth.save(tmp_path / "data" / name / TRUTH)
    random = np.random.default_rng(5)
    for run in runs_of(make_plan(CONFIG, tmp_path)):
        run.folder.mkdir(parents=True)
        found_in(truths[run.data], random).save(run.folder / FOUND)
        if run.arm.name == "freeze":
            if run.seed == 0 and run.fraction == 10 and run.data == "one":
                write_json(run.folder / FAILURE, {"error": "it | broke"})
            continue
        seconds = 20.0 if run.arm.name == "sos" else 10.0
        result = {"settings": {"lr": 1}, "seconds": seconds, "wall": seconds, "memory": None, "squared_norm": 4.0}
        result |= {"loss": {"train": 1.0, "val": 2.0, "test": 3.0}, "resumed": run.arm.name == "sos" and run.seed == 2}
        curves = {"train_loss": [3.0, 2.0], "val_loss": [3.0, 2.5], "map50_95": [0.1, 0.2]}
        write_json(run.folder / RESULT, {**result, "curves": {} if run.after else curves})
    return tmp_path


def test_the_mean_over_data_sets_is_that_of_each(folder):
    content = summarise(recorded(folder, 60))
    weights = {name: draws(8, 60) for name in CONFIG.names()}
    parts, means = [], []
    for number, name in enumerate(CONFIG.names()):
        by_seed = []
        for seed in CONFIG.seeds:
            of = {}
            for arm in ("stock", "sos"):
                cells = [folder / "runs" / cell / f"{arm}-{seed}" / FOUND for cell in (f"{name}-10", name)]
                each = [resample(truth_of(number), Found.load(cell), weights[name]).means["ap"] for cell in cells]
                of[arm] = np.mean(each, axis=0)
            by_seed.append(of["sos"] - of["stock"])
            means.append(of["sos"][0])
        parts.append(paired(np.array(by_seed), truth_of(number).evidence, 1 / 101, runs=2))  # two numbers of images
    arm = content["arms"][1]
    known = mean_of(parts)
    assert (arm["name"], arm["mean"]) == ("sos", pytest.approx(np.mean(means)))
    assert (arm["difference"], arm["low"], arm["high"]) == pytest.approx((known.value, known.low, known.high))
    assert (arm["seconds"], arm["seconds_ratio"]) == (20, 2)
    assert [cell["name"] for cell in content["cells"]] == ["one-10", "one", "two-10", "two"]
    assert content["cells"][0]["arms"][1]["by_seed"] != arm["by_seed"]
    names = [row["name"] for row in content["cells"][0]["classes"]["sos"]]
    assert names == ["cat", "dog"]


def test_what_is_missing_is_said(folder):
    content = summarise(recorded(folder, 20))
    freeze = content["arms"][2]
    assert (freeze["mean"], freeze["difference"], freeze["seeds"], freeze["failed"]) == (None, None, [], 1)
    assert content["runs"] == {"planned": 48, "done": 36}
    assert content["failures"][0]["error"] == "it | broke"
    assert "freeze: no result yet" in content["verdict"]
    assert any("resumed" in warning for warning in content["warnings"])
    text = markdown(content)
    assert "it / broke" in text
    for table in text.split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, table


def test_a_seed_that_failed_on_one_data_set_counts_on_none(folder):
    (folder / "runs" / "two" / "sos-0" / RESULT).unlink()
    content = summarise(recorded(folder, 20))
    stock, sos = content["arms"][:2]
    assert (sos["seeds"], sos["pairs"]) == ([1, 2], 2)
    assert sos["by_seed"] == pytest.approx(np.subtract(sos["values"], stock["values"][1:]))
    assert sos["difference"] == pytest.approx(np.mean(sos["by_seed"]))


def test_of_a_class_in_one_image_nothing_is_known(folder):
    before = summarise(recorded(folder, 20))["cells"][0]["arms"][1]
    for name in CONFIG.names():
        path = folder / "data" / name / TRUTH
        truth = Truth.load(path)
        others = (truth.image > 0) & (truth.class_index == 1)
        replace(truth, difficult=others).save(path)
    cell = summarise(recorded(folder, 20))["cells"][0]
    cat, dog = cell["classes"]["sos"]
    assert (dog["low"], dog["high"]) == (-1, 1)
    assert cat["high"] - cat["low"] < 1
    assert cell["arms"][1]["image_part"] > 2 * before["image_part"]


def test_the_files_of_a_report(folder, tmp_path):
    measured = recorded(folder, 20)
    content = summarise(measured)
    page = write_report(content, measured, folder).read_text()
    assert page.count('<img src="data:image/png;base64,') == 4
    assert "it | broke" in page
    assert (folder / "fractions.png").stat().st_size > 1000
    rows = list(csv.DictReader((folder / "arms.csv").open()))
    assert len(rows) == 4 * 5  # arms, of all and of each cell
    assert {row["name"] for row in rows} == {"stock", "sos", "freeze", "toward"}
    assert json.loads((folder / "compare.json").read_text())["arms"][1]["difference"] == pytest.approx(
        float(rows[1]["difference"])
    )
    assert len(list(csv.DictReader((folder / "classes.csv").open()))) == 4 * 4 * 2


def test_the_plan_is_made_seed_by_seed_with_shifts_after_their_training(tmp_path):
    jobs = make_plan(CONFIG, tmp_path)
    assert [run.label for run in jobs[0].runs] == ["stock, seed 0, one-10", "toward, seed 0, one-10"]
    assert jobs[0].runs[1].after == jobs[0].runs[0]
    assert [job.runs[0].seed for job in jobs] == sorted(job.runs[0].seed for job in jobs)
    assert len({run.folder for run in runs_of(jobs)}) == 48


def test_a_result_of_other_settings_is_not_taken(folder):
    run = next(run for run in runs_of(make_plan(CONFIG, folder)) if run.done)
    run.check({"lr": 1})
    with pytest.raises(UserError, match="lr: 1, now 2"):
        run.check({"lr": 2})


def test_the_time_left(folder):
    jobs = make_plan(CONFIG, folder)
    mean = (10 + 20) / 2  # of trainings that are done: as many of one arm as of the other
    assert Clock(jobs, 1).left() == pytest.approx(11 * mean)  # of twelve of `freeze`, one failed
    assert Clock(jobs, 2).left() == pytest.approx(11 * mean / 2)
    assert [duration(value) for value in (None, 5, 600, 9000)] == ["an unknown time", "5 s", "10 min", "2.5 h"]


def test_names_of_data_sets_are_told_apart():
    config = Config("m.pt", ("a/data.yaml", "b/data.yaml", "c/b.yaml"), CONFIG.arms, (0,))
    assert list(config.names()) == ["a", "b", "b-2"]


def test_a_configuration_survives_its_file(tmp_path):
    CONFIG.save(tmp_path)
    assert Config.load(tmp_path) == CONFIG
    with pytest.raises(UserError, match="holds no comparison"):
        Config.load(tmp_path / "x")
