"""The report of a run: one page of HTML, made from what the parties wrote about it.

It needs ``redislink[report]``, which is imported when a page is made; see docs/how-to/report.md.
"""

from redislink.report.gather import Gathered, PartyPart, gather
from redislink.report.writing import write_report

__all__ = ["Gathered", "PartyPart", "gather", "write_report"]
