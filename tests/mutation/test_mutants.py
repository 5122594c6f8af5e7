"""What `python -m tests.mutation` changes, and where it looks for the tests."""

from __future__ import annotations

import pytest

from tests.mutation.__main__ import ROOT, TESTS
from tests.mutation.mutants import mutants

SOURCE = '''"""1 < 2"""
LIMIT: int = 1 << 4
class Box:
    @property
    def full(self) -> bool:
        """not 1"""
        return self.n >= LIMIT and not self.open
'''


def test_each_change_is_of_one_place_and_says_in_which_function_it_is() -> None:
    found = [(mutant.line, mutant.change, mutant.function) for mutant in mutants(SOURCE, "box.py")]
    full = ("Box.full", 4)
    assert sorted(found) == sorted(
        [
            (2, "`1 << 4` → `1 >> 4`", None),
            (2, "`1` → `2`", None),
            (2, "`1` → `0`", None),
            (2, "`4` → `5`", None),
            (2, "`4` → `3`", None),
            (7, "`return self.n >= LIMIT and (not self.open)` → `return None`", full),
            (
                7,
                "`self.n >= LIMIT and (not self.open)` → `self.n >= LIMIT or not self.open`",
                full,
            ),
            (7, "`self.n >= LIMIT` → `self.n > LIMIT`", full),
            (7, "`not self.open` → `self.open`", full),
        ]
    )


def test_a_mutant_is_the_module_with_that_change_alone() -> None:
    compared = next(m for m in mutants(SOURCE, "box.py") if m.change.endswith("`self.n > LIMIT`"))
    namespace: dict = {}
    exec(compared.code, namespace)
    box = namespace["Box"]()
    box.open = False
    for box.n, full in ((16, False), (17, True)):
        assert box.full is full


@pytest.mark.parametrize("module", TESTS)
def test_modules_and_their_tests_are_there(module: str) -> None:
    assert (ROOT / "redislink" / f"{module}.py").is_file()
    assert all((ROOT / "tests" / name.partition("::")[0]).is_file() for name in TESTS[module])
