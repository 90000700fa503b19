"""`rise simulate`, as a command."""

from __future__ import annotations

import pytest
from cli_directory import Rise

from rise.cli.simulate import SEEDS_BOUND_MIN, _bound

pytestmark = pytest.mark.req("OPS-1")


@pytest.mark.slow
def test_a_few_seeds_are_counted_and_bound_nothing(rise: Rise):
    found = rise("simulate", "--seeds", "3", "--json").json
    assert (found["seeds"], found["broken"], found["bound"]) == ("1 to 3", 0, None)


def test_a_bound_is_said_from_thirty_seeds_on_and_only_if_none_broke():
    assert _bound(SEEDS_BOUND_MIN - 1, 0) is None
    assert _bound(30, 0) == "fewer than 1 in 10 seeds breaks a promise (95 %)"
    assert _bound(3000, 1) is None


@pytest.mark.slow
def test_worlds_may_have_several_stores(rise: Rise):
    found = rise("simulate", "--profile", "full", "--seeds", "1", "--first", "9", "--json").json
    assert (found["seeds"], found["broken"]) == ("9 to 9", 0)
