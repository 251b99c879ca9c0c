"""Places in the predictions of several lanes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidInput
from pipeline.traffic.lanes.places import pack_place, unpack_place


@given(st.dictionaries(st.integers(0, 65_535), st.integers(0, 1 << 60)))
def test_a_place_comes_back(place: dict[int, int]) -> None:
    assert unpack_place(pack_place(place)) == place


def test_a_place_of_version_0_1_is_the_beginning() -> None:
    assert unpack_place("1234") == unpack_place("") == {}


@pytest.mark.parametrize("text", ["3-7", "3:", ":", "3:4:5", "a:b"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a place"):
        unpack_place(text)
