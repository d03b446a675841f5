"""Counter-based randomness: every draw is a hash of (key, counters), so no slot's dice depend on another's.

A slot's key is drawn once, when it is seeded. Everything later is a pure function of the key and of counters
(episode, step, purpose), computed for all slots at once, the same for one slot as for a thousand.
"""

from __future__ import annotations

import numpy as np

# What a hash is drawn for. Two purposes never share a draw.
START, RESPOND, FORK, WRITE, PAY = 0, 1, 2, 3, 4

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MASK = 2**64 - 1
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """One output of the generator SplitMix64 from state x, elementwise.

    Args:
        x: (n,) uint64.

    Returns:
        (n,) uint64. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    z = x + _GOLDEN  # unsigned arrays wrap around, as the algorithm wants
    z ^= z >> _SHIFTS[0]
    z *= _MULTIPLIERS[0]
    z ^= z >> _SHIFTS[1]
    z *= _MULTIPLIERS[1]
    z ^= z >> _SHIFTS[2]
    return z


def _splitmix64(x: int) -> int:
    """`splitmix64` of one Python integer."""
    z = (x + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def mix(key: np.ndarray, *counters: np.ndarray | int) -> np.ndarray:
    """Hashes keys with counters.

    Args:
        key: (n,) uint64.
        counters: (n,) non-negative integers each, or one integer for all.

    Returns:
        (n,) uint64, uniform over keys and over counters.
    """
    if len(key) == 1:  # Python's integers are faster for a single number
        one = int(key[0])
        for counter in counters:
            one = _splitmix64(one ^ _splitmix64(counter if isinstance(counter, int) else int(counter[0])))
        return np.array([one], np.uint64)
    mixed = key
    for counter in counters:
        mixed = splitmix64(mixed ^ splitmix64(np.atleast_1d(np.asarray(counter)).astype(np.uint64)))
    return mixed


def uniform(dice: np.ndarray) -> np.ndarray:
    """Hashes (n,) uint64 as uniform numbers (n,) float64 in [0, 1), multiples of 2^-53."""
    return (dice >> np.uint64(11)) * 2.0**-53


def normal(dice: np.ndarray) -> np.ndarray:
    """Hashes (n,) uint64 as standard normal numbers (n,) float64 (Box and Muller 1958)."""
    radius = np.sqrt(-2 * np.log(1 - uniform(dice)))
    return radius * np.cos(2 * np.pi * uniform(splitmix64(dice)))


def generators(dice: np.ndarray) -> list[np.random.Generator]:
    """One independent numpy generator (Philox) per hash; `dice` is (n,) uint64."""
    return [np.random.Generator(np.random.Philox(key=int(die))) for die in dice]
