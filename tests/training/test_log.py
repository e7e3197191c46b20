"""`shifts.csv` of trainings that an earlier version began."""

from yolo_os.training.log import COLUMNS, ShiftLog, epochs_in, read_rows

OLD = """\
step,epoch,layer,role,m,n,rank,rows,norm_before,norm_after,norm_ratio,residual,loss_before,loss_after,taken_back,note
2,1,cv2.0,box,64,64,64,1024,10,8,0.8,0.01,6.4,6.5,0,
4,2,cv2.0,box,64,64,64,1024,8,8,1,0,6.4,6.4,1,
"""


def test_a_training_begun_by_an_earlier_version_goes_on_in_todays_columns(tmp_path):
    (tmp_path / "shifts.csv").write_text(OLD)
    log = ShiftLog(tmp_path / "shifts.csv")
    log.begin(resumed=True)
    log.begin_epoch(step=4)
    assert (log.shifts, log.reverted) == (1, 1)
    rows = read_rows(tmp_path / "shifts.csv")
    assert [float(row["keep"]) for row in rows] == [0.64, 1.0]
    assert all(tuple(row) == COLUMNS for row in rows)


def test_an_epoch_that_a_killed_training_wrote_twice_counts_once(tmp_path):
    """Killed between the row of an epoch and its checkpoint, or within a row."""
    file = tmp_path / "results.csv"
    file.write_text("epoch,train/loss\n1,3.5\n2,3.0\n2,2.9\n3,2.83,2.5\n4,2.4\n5\n")
    assert epochs_in(file) == [
        {"epoch": "1", "train/loss": "3.5"},
        {"epoch": "2", "train/loss": "2.9"},
        {"epoch": "4", "train/loss": "2.4"},
    ]
