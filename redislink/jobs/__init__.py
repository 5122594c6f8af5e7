"""Jobs: what a driver offers, what each organisation's policy decides, and what is then run.

Rules: an offer, its arguments and an attached program were made by somebody else. They are data:
bounded, checked field by field, shown with their control characters escaped, and never unpickled.
"""
