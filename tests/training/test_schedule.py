import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_os.errors import UserError
from yolo_os.training.schedule import Schedule


def shifts(schedule, batches, epochs, resumed=0):
    """The steps that shift when every batch is a step, and the training begins with epoch `resumed`."""
    due = []
    for epoch in range(resumed, epochs):
        period = schedule.period(epoch * batches, epoch - 1)  # as the trainer finds its place at the epoch's start
        for step in range(epoch * batches + 1, (epoch + 1) * batches + 1):
            if schedule.period(step, epoch) > period:
                due.append(step)
                period = schedule.period(step, epoch)
    return due


@pytest.mark.parametrize(
    ("every", "steps", "epochs"),
    [
        (1, 1, None),
        (100, 100, None),
        ("100", 100, None),
        ("100steps", 100, None),
        ("100 steps", 100, None),
        ("step", 1, None),
        ("epoch", None, 1),
        ("1epoch", None, 1),
        ("2epochs", None, 2),
        (" 12 epochs ", None, 12),
        (None, None, None),
    ],
)
def test_every_is_read_as_steps_or_epochs(every, steps, epochs):
    schedule = Schedule(every)
    assert (schedule.steps, schedule.epochs) == (steps, epochs)


@pytest.mark.parametrize(
    "every", [0, -1, "x", "", True, False, 1.5, "0epochs", "-1epochs", "1.5epochs", "2 weeks", "epoch2", [2]]
)
def test_a_bad_every_is_refused_by_name(every):
    with pytest.raises(UserError, match=r"^every=.*: takes "):
        Schedule(every)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("start", value) for value in (-0.1, 1, 1.5, float("nan"), "early", None, True)),
        *(("end", value) for value in (0, -1, 1.1, float("nan"), "late", None)),
    ],
)
def test_a_share_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"^{name}=.*: takes "):
        Schedule(**{name: value})


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.5), (0.7, 0.1)])
def test_a_start_that_is_not_before_the_end_is_refused(start, end):
    with pytest.raises(UserError, match=f"^start={start} is not before end={end}"):
        Schedule(start=start, end=end)


def test_whole_numbers_are_shares_too():
    assert Schedule(start=0, end=1).to_dict() == {"every": "epoch", "start": 0.0, "end": 1.0}


@pytest.mark.parametrize(
    ("every", "beyond"), [(12, False), (13, True), ("4epochs", False), ("5epochs", True), (None, False), (1, False)]
)
def test_beyond_says_whether_a_training_of_12_steps_in_4_epochs_is_too_short(every, beyond):
    assert Schedule(every).beyond(steps=12, epochs=4) is beyond


def test_steps_count_from_one_and_epochs_shift_in_the_first_step_after_them():
    assert shifts(Schedule(4), batches=3, epochs=4) == [4, 8, 12]
    assert shifts(Schedule("epoch"), batches=3, epochs=4) == [4, 7, 10]
    assert shifts(Schedule("2epochs"), batches=3, epochs=5) == [7, 13]
    assert shifts(Schedule(None), batches=3, epochs=5) == []


def test_within_holds_both_ends():
    within = Schedule(start=0.25, end=0.75).within
    assert [within(share) for share in (0, 0.24, 0.25, 0.5, 0.75, 0.76, 1)] == [
        False,
        False,
        True,
        True,
        True,
        False,
        0,
    ]


@given(every=st.integers(1, 20), batches=st.integers(1, 12), epochs=st.integers(1, 8))
def test_shifts_come_exactly_at_the_multiples(every, batches, epochs):
    assert shifts(Schedule(every), batches, epochs) == list(range(every, batches * epochs + 1, every))
    by_epochs = [epoch * batches + 1 for epoch in range(every, epochs, every)]
    assert shifts(Schedule(f"{every}epochs"), batches, epochs) == by_epochs
    assert Schedule(every).beyond(batches * epochs, epochs) == (every > batches * epochs)


@given(
    every=st.builds(lambda count, unit: f"{count}{unit}", st.integers(1, 20), st.sampled_from(["steps", "epochs"])),
    batches=st.integers(1, 12),
    epochs=st.integers(1, 8),
    data=st.data(),
)
def test_a_training_resumed_at_any_epoch_shifts_at_the_same_steps(every, batches, epochs, data):
    resumed = data.draw(st.integers(0, epochs - 1))
    whole = shifts(Schedule(every), batches, epochs)
    assert shifts(Schedule(every), batches, epochs, resumed) == [step for step in whole if step > resumed * batches]


@given(every=st.integers(1, 20), skipped=st.sets(st.integers(1, 60)))
def test_a_step_that_could_not_shift_leaves_it_to_the_next_one(every, skipped):
    """As where a gradient scaler skips the optimizer's step."""
    schedule, period, due = Schedule(every), 0, []
    for step in range(1, 61):
        if step not in skipped and schedule.period(step, 0) > period:
            due.append(step)
            period = schedule.period(step, 0)
    assert {step // every for step in due} == {step // every for step in range(every, 61) if step not in skipped}
    assert all(step % every == 0 or set(range(step - step % every, step)) <= skipped for step in due)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Schedule(), "every epoch from 70% to 100% of the training"),
        (Schedule("2epochs", 0.5), "every 2 epochs from 50% to 100% of the training"),
        (Schedule(100, 0, 0.9), "every 100 steps from 0% to 90% of the training"),
        (Schedule(1, 0), "every step from 0% to 100% of the training"),
        (Schedule(None), "never"),
    ],
)
def test_it_says_what_it_is_in_a_line(schedule, text):
    assert str(schedule) == text


@pytest.mark.parametrize(
    ("schedule", "training", "count"),
    [
        (Schedule("epoch"), (10, 1, 10), 3),  # in the first steps of epochs 8, 9 and 10
        (Schedule("epoch", start=0), (10, 1, 10), 9),
        (Schedule("epoch", start=0), (10, 1, 1), 0),
        (Schedule(100), (10, 1, 10), 1),  # in the very last step
        (Schedule(101), (10, 1, 10), 0),
        (Schedule(2, start=0), (4, 2, 3), 3),  # two batches a step, two steps an epoch
        (Schedule(2, start=0), (5, 2, 3), 3),  # what is over goes into no step of its own
        (Schedule("2epochs", start=0.9), (3, 1, 6), 0),  # due in the fifth epoch, before 0.9, and not again
        (Schedule("epoch", start=0), (3, 4, 8), 6),  # a step takes more than an epoch
        (Schedule(2, start=0), (3, 4, 8), 3),
        (Schedule("epoch", start=0.55), (10, 1, 10), 4),  # in the middle of an epoch, which has begun before it
        (Schedule(None), (10, 1, 10), 0),
    ],
    ids=str,
)
def test_the_count_of_shifts_in_a_training(schedule, training, count):
    assert schedule.count(*training) == count
