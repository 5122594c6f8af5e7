"""Programs that were written for other links run over redislink.

One module or package for each kind of program; nothing here acts unless it is asked for.
"""
