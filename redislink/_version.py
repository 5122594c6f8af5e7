"""The version, in the one place that the build, the CLI and the handshake read."""

__version__ = "0.2.0"
