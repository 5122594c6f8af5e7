"""Watches endpoints: metrics and timelines. It imports transport, never the other way round."""
