"""Where a running trial stands, told now and then to whoever listens.  Nothing here changes a number."""

from collections.abc import Callable

Listener = Callable[[int, int, float], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """From now on call `listener(step, steps, loss)` where a training loop reads its losses; returns what ends it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def tell(step: int, steps: int, loss: float) -> None:
    """`step` of `steps` are done, the last with this (finite) loss."""
    for listener in _listeners:
        listener(step, steps, loss)
