"""A timeline of a run: each party records its own calls, `merge` puts all parties' on one axis.

Files are JSON in Chrome's trace event format, which https://ui.perfetto.dev and
``chrome://tracing`` open. They hold parties, tags, sizes and times; never a payload.
"""
