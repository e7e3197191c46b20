import pytest
import torch

from yolo_os.statistics import Anchors, Gram, RowSample, relative_change


def batches(count=5, images=2, width=6, points=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, width, points, generator=generator) for _ in range(count)]


def rows_of(features):
    return features.transpose(1, 2).reshape(-1, features.shape[1])


def logit(score):
    """Class logits of one class, whose probability is the score."""
    return torch.logit(score.clamp(1e-6, 1 - 1e-6))[:, None]


def is_row_of(rows, all_rows):
    return (rows[:, None] == all_rows[None]).all(2).any(1)


def test_gram_is_that_of_all_rows():
    gram, seen = Gram(), torch.cat([rows_of(batch) for batch in batches()]).double()
    for batch in batches():
        gram.add(batch, batch, Anchors())
    torch.testing.assert_close(gram.matrix, seen.T @ seen, atol=1e-10, rtol=0)
    assert gram.count == len(seen)
    weight, bias = torch.randn(6, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    assert gram.energy(weight) == pytest.approx(float((seen @ weight).square().sum()))
    assert gram.energy(weight, bias) == pytest.approx(float((seen @ weight + bias).square().sum()))


def test_relative_change():
    gram = Gram()
    assert str(relative_change(gram, torch.ones(6, 1), torch.ones(6, 1))) == "nan"
    gram.add(batches(1)[0], batches(1)[0], Anchors())
    before = torch.randn(6, 2, dtype=torch.float64)
    assert relative_change(gram, before, before) == 0
    assert relative_change(gram, before, 1.1 * before) == pytest.approx(0.1)


@pytest.mark.parametrize("sampling", ["uniform", "foreground", "balanced"])
def test_sample_holds_rows_that_were_there_and_is_reproducible(sampling):
    def sample(seed=0, name="cv3.0"):
        collector = RowSample(16, sampling, seed, name)
        for number, batch in enumerate(batches()):
            generator = torch.Generator().manual_seed(number)
            score = torch.rand(2, 30, generator=generator)
            label = torch.randint(-1, 4, (2, 30), generator=generator)
            collector.add(batch, batch, Anchors(logit(score), label, number))
        return collector.rows

    rows = sample()
    everything = torch.cat([rows_of(batch) for batch in batches()])
    assert len(rows) == 16
    assert is_row_of(rows, everything).all()
    assert len(torch.unique(rows, dim=0)) == 16
    assert torch.equal(rows, sample())
    assert not torch.equal(rows, sample(seed=1))
    assert not torch.equal(rows, sample(name="cv3.1"))


def test_fewer_rows_than_asked_for_are_all_kept():
    collector = RowSample(1000, "uniform", 0, "x")
    collector.add(batches(1)[0], batches(1)[0], Anchors())
    assert len(collector.rows) == 60 == collector.count


def test_uniform_sampling_gives_every_row_the_same_chance():
    # 60 rows over 3 batches, 6 drawn, 500 times: each row is expected 50 times, sd about 6.7.
    drawn = torch.zeros(60)
    features = torch.arange(60.0).reshape(3, 1, 1, 20)
    for seed in range(500):
        collector = RowSample(6, "uniform", seed, "x")
        for number, batch in enumerate(features):
            collector.add(batch, batch, Anchors(batch=number))
        drawn[collector.rows.long().flatten()] += 1
    assert drawn.sum() == 3000
    assert drawn.min() > 20
    assert drawn.max() < 85


def test_foreground_sampling_follows_the_scores():
    features = torch.arange(100.0).reshape(1, 1, 100)
    score = torch.full((1, 100), 1e-4)
    score[0, :10] = 0.9
    for seed in range(20):
        collector = RowSample(10, "foreground", seed, "x")
        collector.add(features, features, Anchors(logit(score)))
        assert (collector.rows < 10).float().mean() >= 0.8
        assert collector.drawn == "foreground"


def test_balanced_sampling_has_every_class_that_occurs_and_the_stream_changes_nothing():
    labels = torch.full((4, 50), -1)
    labels[0, :30] = 0  # a frequent class
    labels[1, 3] = 1  # a class with one anchor
    labels[3, 7:9] = 2
    score = torch.rand(4, 50, generator=torch.Generator().manual_seed(0))
    features = torch.arange(200.0).reshape(4, 1, 50)

    collector = RowSample(8, "balanced", 0, "x")
    for image in range(4):
        one = features[image : image + 1]
        collector.add(one, one, Anchors(logit(score[image : image + 1]), labels[image : image + 1], image))
    kept = labels.flatten()[collector.rows.long().flatten()]
    assert {0, 1, 2} <= set(kept.tolist())
    assert (kept == 1).sum() == 1
    assert (kept == 2).sum() == 2
    assert (kept == 0).sum() == 5  # the rest goes to what is left of the classes, not to background
    assert collector.drawn == "balanced"


def test_balanced_sampling_fills_up_with_background():
    labels = torch.full((1, 50), -1)
    labels[0, 4] = 3
    collector = RowSample(8, "balanced", 0, "x")
    features = torch.arange(50.0).reshape(1, 1, 50)
    collector.add(features, features, Anchors(logit(torch.rand(1, 50)), labels))
    assert len(collector.rows) == 8
    assert 4.0 in collector.rows


def test_a_stream_keeps_what_one_batch_would(monkeypatch):
    """Dropping rows early is exact: the same keys give the same rows, in pieces or at once."""
    keys = torch.rand(1, 120, generator=torch.Generator().manual_seed(5))
    labels = torch.randint(-1, 5, (1, 120), generator=torch.Generator().manual_seed(6))
    features = torch.arange(120.0).reshape(1, 1, 120)
    given = {"at": 0}

    def rand(count, **_):
        given["at"] += count
        return keys[0, given["at"] - count : given["at"]].clone()

    monkeypatch.setattr("yolo_os.statistics.torch.rand", rand)

    def sample(pieces):
        given["at"] = 0
        collector = RowSample(17, "balanced", 0, "x")
        for part, label in zip(features.split(pieces, 2), labels.split(pieces, 1)):
            collector.add(part, part, Anchors(None, label))
        return set(collector.rows.flatten().tolist())

    whole = sample(120)
    assert len(whole) == 17
    assert all(sample(pieces) == whole for pieces in (1, 7, 30, 60))


def test_what_is_missing_falls_back_and_is_said():
    collector = RowSample(4, "balanced", 0, "x")
    collector.add(batches(1)[0], batches(1)[0], Anchors())
    assert collector.drawn == "uniform"
    collector = RowSample(4, "balanced", 0, "x")
    collector.add(batches(1)[0], batches(1)[0], Anchors(logit(torch.rand(2, 30))))
    assert collector.drawn == "foreground"


def test_half_precision_features():
    gram = Gram()
    gram.add(batches(1)[0].half(), batches(1)[0].half(), Anchors())
    assert gram.matrix.dtype == torch.float64
    collector = RowSample(4, "foreground", 0, "x")
    features = batches(1)[0].bfloat16()
    collector.add(features, features, Anchors(logit(torch.rand(2, 30)).bfloat16()))
    assert collector.rows.dtype == torch.bfloat16
