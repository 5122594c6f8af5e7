"""The audit record of a party: what was computed with whom, and what was revealed to whom.

Lines of JSON, each chained to the one before and signed; see docs/audit.md. It knows no broker.
"""

from redislink.audit.log import AuditLog
from redislink.audit.records import Record, read_records
from redislink.audit.runs import AuditJob, AuditRun, AuditStep, jobs_of, runs_of

__all__ = [
    "AuditJob",
    "AuditLog",
    "AuditRun",
    "AuditStep",
    "Record",
    "jobs_of",
    "read_records",
    "runs_of",
]
