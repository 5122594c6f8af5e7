"""Mutation testing: `python -m tests.mutation`; `survivors.md` keeps what was looked at."""
