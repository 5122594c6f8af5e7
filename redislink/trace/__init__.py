"""A timeline of a run: each party records its own calls, `merge` puts all parties' on one axis.

What `merge` makes is JSON in Chrome's trace event format, which https://ui.perfetto.dev and
``chrome://tracing`` open. All files hold parties, tags, sizes and times; never a payload.
"""
