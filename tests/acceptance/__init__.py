"""Other people's programs and tests over redislink, unchanged: ``make acceptance``.

Their sources are fetched for the run and never committed; what needs packages of its own, or
another interpreter, makes its own virtual environment in ``build/acceptance``.
"""
