"""The audit record of a party: what was computed with whom, and what was revealed to whom.

Lines of JSON, each chained to the one before and signed; see docs/audit.md. It knows no broker.
"""

from redislink.audit.comparing import Comparison, compare_records
from redislink.audit.log import AuditLog
from redislink.audit.records import (
    BeginSaid,
    DecisionSaid,
    EndSaid,
    FileSaid,
    MendedSaid,
    OfferSaid,
    Participant,
    PsiSaid,
    Record,
    ResultSaid,
    RevealSaid,
    Said,
    Script,
    StartSaid,
    StepSaid,
    Traffic,
    UnknownSaid,
    read_records,
)
from redislink.audit.runs import AuditJob, AuditRun, AuditStep, jobs_of, runs_of
from redislink.audit.verifying import Verification, verify_file

__all__ = [
    "AuditJob",
    "AuditLog",
    "AuditRun",
    "AuditStep",
    "BeginSaid",
    "Comparison",
    "DecisionSaid",
    "EndSaid",
    "FileSaid",
    "MendedSaid",
    "OfferSaid",
    "Participant",
    "PsiSaid",
    "Record",
    "ResultSaid",
    "RevealSaid",
    "Said",
    "Script",
    "StartSaid",
    "StepSaid",
    "Traffic",
    "UnknownSaid",
    "Verification",
    "compare_records",
    "jobs_of",
    "read_records",
    "runs_of",
    "verify_file",
]
