"""What Python processes import at their start, if the program that starts them was told to.

`sitecustomize` is in a directory of its own, which is put first on ``PYTHONPATH``.
"""
