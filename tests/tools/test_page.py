"""Parts of the demo's page."""

from __future__ import annotations

import json

import pytest

from seqssm.tools.page import read_test_table


def test_a_table_is_found_by_its_title(tmp_path):
    tables = [{"title": "Test, 9 records", "rows": [{"a": 1}]}, {"title": "By class", "rows": [{"a": 2}, {"a": 3}]}]
    (tmp_path / "metrics.json").write_text(json.dumps({"test": {"tables": tables}}))
    assert read_test_table(tmp_path, "By class")["a"].tolist() == [2, 3]
    for wrong in ("By lead", ""):
        with pytest.raises(LookupError, match=f"tables whose title starts with '{wrong}' among Test, 9 records, By"):
            read_test_table(tmp_path, wrong)
