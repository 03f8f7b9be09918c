def chain(steps: int) -> int:
    """Do so many steps, each of which needs the one before; the last value. GIL released.

    It lives in registers: what others do to the caches must not move what times are divided by.
    """
