"""One party in one session: joins the protocol and the broker."""
