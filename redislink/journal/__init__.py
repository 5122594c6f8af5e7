"""The files of a journal of steps: sealed records on disk, and what a crash leaves of them.

It knows bytes, not steps: what a record means is for `redislink.session` to say.
"""

from redislink.journal.contents import Binding, Entry
from redislink.journal.store import JournalStore
from redislink.journal.tools import (
    Description,
    Verification,
    describe,
    drop,
    find_journals,
    verify,
)

__all__ = [
    "Binding",
    "Description",
    "Entry",
    "JournalStore",
    "Verification",
    "describe",
    "drop",
    "find_journals",
    "verify",
]
