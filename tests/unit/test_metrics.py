"""Values of metric tags are in the characters that every metrics backend accepts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_bankconnect.metrics import tag_value


@pytest.mark.parametrize(
    ("value", "tag"),
    [
        ("bankconnect_default", "bankconnect_default"),
        ("bank-connect.UAT_2", "bank-connect.UAT_2"),
        ("my bank", "my_bank"),
        ("team:bank+uat", "team_bank_uat"),
        ("a,b=c|d@e#f/g\\h", "a_b_c_d_e_f_g_h"),
        ("bänk\n", "b_nk_"),
        ("٣", "_"),
        ("", "_"),
        ("x" * 250, "x" * 128),
    ],
)
def test_other_characters_of_a_tag_value_become_underscores(value, tag):
    assert tag_value(value) == tag


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=300))
def test_any_text_becomes_a_tag_value_that_stays_as_it_is(text):
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", tag_value(text), flags=re.ASCII)
    assert tag_value(tag_value(text)) == tag_value(text)
