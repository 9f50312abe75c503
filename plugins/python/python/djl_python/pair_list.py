"""An ordered list of keys and values, in which a key may be there more than once."""


class PairList:
    """Keys and values in the order they were added."""

    def __init__(self, keys=None, values=None):
        self._keys = list(keys or [])
        self._values = list(values or [])
        if len(self._keys) != len(self._values):
            raise ValueError(f"{len(self._keys)} keys for {len(self._values)} values")

    def add(self, key=None, value=None):
        """Adds an entry at the end."""
        self._keys.append(key)
        self._values.append(value)

    def size(self):
        """How many entries there are."""
        return len(self._keys)

    def is_empty(self):
        """Whether there are none."""
        return not self._keys

    def contains(self, key):
        """Whether there is an entry of this key."""
        return key in self._keys

    def get(self, key=None):
        """The value of the first entry of this key, or of an index; None if there is none."""
        if isinstance(key, int) and not isinstance(key, bool):
            return self._values[key] if -len(self._values) <= key < len(self._values) else None
        for known, value in zip(self._keys, self._values):
            if known == key:
                return value
        return None

    def key_at(self, index):
        """The key of the entry at an index."""
        return self._keys[index]

    def value_at(self, index):
        """The value of the entry at an index."""
        return self._values[index]

    def keys(self):
        """All keys, in order."""
        return self._keys

    def values(self):
        """All values, in order."""
        return self._values

    def items(self):
        """Pairs of keys and values, in order."""
        return list(zip(self._keys, self._values))

    def get_keys(self):
        """All keys, in order."""
        return self._keys

    def get_values(self):
        """All values, in order."""
        return self._values

    def __len__(self):
        return len(self._keys)

    def __contains__(self, key):
        return self.contains(key)

    def __repr__(self):
        return f"PairList({self.items()!r})"
