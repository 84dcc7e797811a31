"""Keys of a workload. They rotate: a key is used for some hundred operations and then left, so that the
checker's groups stay small and old keys remain as witnesses for the final reads.
"""

import itertools

from chaos.callers import Caller


class Keys:
    """Hands out keys of a moving window. Names end in a generation, so that none is used again."""

    def __init__(self, name: str, width: int, uses_max: int) -> None:
        self._name = name
        self._uses_max = uses_max
        self._fresh = itertools.count()
        self._window = [next(self._fresh) for _ in range(width)]
        self._uses = dict.fromkeys(self._window, 0)
        self._values = itertools.count(1)

    def draw(self, caller: Caller) -> str:
        place = caller.dice.randrange(len(self._window))
        number = self._window[place]
        self._uses[number] += 1
        if self._uses[number] >= self._uses_max:
            self._window[place] = next(self._fresh)
            self._uses[self._window[place]] = 0
        return self.name_of(number)

    def name_of(self, number: int) -> str:
        return f"{self._name}-{number}"

    def all(self) -> list[str]:
        return [self.name_of(number) for number in self._uses]

    def value(self) -> str:
        """Never the same twice: a value then names its writer."""
        return f"v{next(self._values)}"
