"""The protocol core: bytes and times in, frames and decisions out.

Rules that every module here obeys: no socket, no clock, no randomness, no logging, no
``redis``, no ``spu``. Time and random bytes come in as parameters, so that tests are exact.
What parses bytes from the broker ends in ``_untrusted`` and raises ``FrameError`` only.
"""
