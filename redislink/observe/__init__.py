"""What watches an endpoint: metrics and timelines. Imports transport, never the other way."""
