"""A function for worker processes that dies on some items. Imports little: spawning is slow."""

import os


def double(item: int) -> int:
    """Twice the item; odd ones from 101 on take their process with them."""
    if item > 100 and item % 2:
        os._exit(9)
    return 2 * item
