"""The protocol core: bytes and times in, frames and decisions out.

Every module here obeys these rules: no socket, no clock, no randomness, no logging, no ``redis``,
no ``spu``. Times and random bytes come in as parameters, so tests are exact. A function that
parses bytes from the broker has a name that ends in ``_untrusted``, and raises only ``FrameError``.
"""
