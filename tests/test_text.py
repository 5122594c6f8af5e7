"""What somebody else wrote is shown as text and nothing else."""

from __future__ import annotations

import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from redislink.text import MOST_SHOWN, one_line

_DANGEROUS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_no_character_that_a_terminal_obeys_or_that_hides_others_is_left() -> None:
    shown = one_line("".join(map(chr, range(sys.maxunicode + 1))), sys.maxunicode + 1)
    assert not _DANGEROUS & {unicodedata.category(c) for c in shown}


def test_escapes_bidi_and_lines_show_where_they_were() -> None:
    assert one_line("a\x1b[2J\x9b1mb") == "a�[2J�1mb"
    assert one_line("key\u202egpj.\u2066") == "key�gpj.�"
    assert one_line(" one\r\n two\u2028three\t") == "one two three"
    assert one_line("Zürich 東京 ok") == "Zürich 東京 ok"


def test_it_is_bounded() -> None:
    assert one_line("x" * 80, 80) == "x" * 80
    assert one_line("x" * 81, 80) == "x" * 79 + "…"
    assert len(one_line("x" * 10**6)) == MOST_SHOWN


@given(st.text(), st.integers(1, 20))
def test_whatever_it_is_given(text: str, limit: int) -> None:
    shown = one_line(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert one_line(shown, limit) == shown
