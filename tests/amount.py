"""How many random examples a property gets: few in `make test`, twenty times as many in `make slow`."""

import hypothesis

QUICK = 30
# The same examples on every run.
hypothesis.settings.register_profile("sentei", deadline=None, derandomize=True, max_examples=QUICK)
hypothesis.settings.register_profile("many", deadline=None, derandomize=True, max_examples=20 * QUICK)


def examples(quick: int) -> int:
    """For a property that takes longer than others: `@settings(max_examples=examples(10))`."""
    return quick * hypothesis.settings.default.max_examples // QUICK
