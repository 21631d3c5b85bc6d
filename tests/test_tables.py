import numpy as np
import pandas as pd

from utils.tables import markdown, number, with_sem


def test_numbers_and_what_is_missing():
    assert number(1.25, "+.2f") == "+1.25" and number(np.nan) == ""
    assert with_sem(86.24, 0.31) == "86.2 ± 0.3"
    assert with_sem(86.24, np.nan) == "86.2" and with_sem(np.nan, np.nan) == ""


def test_markdown_has_a_line_for_each_row_and_cells_of_one_width():
    table = pd.DataFrame({"class": ["cat", "automobile"], "runs": [1, 12]}, index=[7, 9])
    assert markdown(table).splitlines() == [
        "| class      | runs |",
        "| ---------- | ---- |",
        "| cat        | 1    |",
        "| automobile | 12   |",
    ]
