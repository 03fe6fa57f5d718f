"""One root seed, many named children: adding a consumer never changes what another one draws."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["child_seed", "fingerprint", "generator"]


def child_seed(root: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends on the root seed and the path of names, and on nothing else.

    >>> child_seed(0, "poison") == child_seed(0, "poison") != child_seed(0, "tune")
    True
    """
    path = "\x1f".join([str(root), *map(str, names)])
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def generator(root: int, *names: str | int) -> np.random.Generator:
    """Return a fresh NumPy generator for the named child of `root`.

    >>> bool(generator(0, "a").integers(100) == generator(0, "a").integers(100))
    True
    """
    return np.random.default_rng(child_seed(root, *names))


def fingerprint(text: str) -> str:
    """Return a name for a text, by which random choices depend on the text alone and not on its place.

    >>> fingerprint("a fine film")[:8]
    'bac6d0ff'
    """
    # surrogatepass: JSON files may hold lone surrogates, which plain UTF-8 refuses
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
