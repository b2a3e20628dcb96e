"""No damage to the files of a saved network ends in a traceback or goes unseen."""

import pytest

from tests.surgery.damage import faults, tried


def test_some_damage_is_refused_in_words() -> None:
    found = tried(flips=60, structures=60)
    assert faults(found) == []
    assert all(sum(outcomes.values()) > 40 for outcomes in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_flips_and_two_hundred_structural_changes(seed: int) -> None:
    assert faults(tried(flips=1000, structures=200, seed=seed)) == []
