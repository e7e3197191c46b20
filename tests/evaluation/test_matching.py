import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from yolo_os.evaluation.matching import _order_falling


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 0.5]), max_size=50))
def test_scores_of_any_size_and_sign_are_sorted_stably(scores):
    values = np.array(scores, dtype=np.float64)
    np.testing.assert_array_equal(_order_falling(values), np.argsort(-values, kind="stable"))
