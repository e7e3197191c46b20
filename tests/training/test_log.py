"""`shifts.csv` of trainings that an earlier version began."""

from yolo_os.training.log import COLUMNS, ShiftLog, read_rows

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
