"""Table 2 and Figure 6 from scores: what is compared with what."""

import pytest

from configs.roadmap import ROWS
from spatialllm_jax.evaluation import report_parts, roadmap_report
from spatialllm_jax.questions.types import SPATIAL_TYPES


def scores(acc):
    def cell(share):
        return {"acc": share, "low": share - 0.02, "high": share + 0.02, "n": 100, "chance": 0.4, "parse_failures": 0}

    return {"overall": cell(acc), "macro": acc, "by_type": {kind: cell(acc) for kind in SPATIAL_TYPES},
            "by_group": {group: cell(acc + 0.1) for group in ("distance", "orientation", "relation")}}


@pytest.fixture
def summary():
    rows = {row: scores(0.4 + 0.01 * k) for k, row in enumerate(ROWS)}
    return {"rows": rows, "blind": scores(0.39), "minutes": 90.0, "seed": 0, "budget": 1.0}


def test_every_row_of_the_paper_is_known():
    assert list(roadmap_report.CHANGES) == list(ROWS) == list(report_parts.PAPER)


def test_a_row_is_compared_with_the_one_it_changes(summary):
    rows = summary["rows"]
    assert roadmap_report.base_of("llava15", rows) is None
    assert roadmap_report.base_of("align_in166k", rows) == "ft1m"
    assert roadmap_report.base_of("stage0_next_token", rows) == "align_in166k"
    assert roadmap_report.base_of("ft1m", {"ft1m": rows["ft1m"]}) is None
    lines = {line.split()[0]: line.split() for line in roadmap_report.text_table(summary).splitlines()}
    assert lines["align_in166k"][1:5] == ["47.0", "[45.0,", "49.0]", "+3.0"]  # over ft1m, 44.0
    assert lines["stage0_next_token"][4] == "+2.0" and lines["align_ft1m"][5:] == ["55.0"] * 3
    assert lines["(guessing)"][1] == "40.0" and lines["(blanked"][2] == "39.0"


def test_the_page(summary, tmp_path):
    page = roadmap_report.write(tmp_path, summary).read_text()
    assert all(text in page for text in roadmap_report.CHANGES.values())
    assert "+3.0 against ft1m; paper +3.0" in page and "62.7" in page and "http" not in page
    # Some of the rows make a page as well.
    few = {**summary, "rows": {"llama3": summary["rows"]["llama3"]}}
    del few["blind"]
    assert "against" not in roadmap_report.write(tmp_path, few).read_text().split("<section>")[2]
    assert roadmap_report.text_table(few).count("\n") == 2
