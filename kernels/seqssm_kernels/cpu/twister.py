"""The CPU kernel of dropout: masks from the words of a Mersenne Twister (MT19937)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

WORDS, SHIFT = 624, 397
HIGH, LOW, TWIST = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0x9908B0DF)
UPPER = np.uint32(0x1FFFFF)  # a double takes 53 bits: 21 of the first word, 32 of the second


@njit
def twisted(this, following, shifted):
    y = (this & HIGH) | (following & LOW)
    return shifted ^ (y >> np.uint32(1)) ^ (TWIST * (y & np.uint32(1)))


@njit
def renew(key):
    """Compute the next block of words."""
    for i in range(WORDS - SHIFT):
        key[i] = twisted(key[i], key[i + 1], key[i + SHIFT])
    for i in range(WORDS - SHIFT, WORDS - 1):
        key[i] = twisted(key[i], key[i + 1], key[i + SHIFT - WORDS])
    key[WORDS - 1] = twisted(key[WORDS - 1], key[0], key[SHIFT - 1])


@njit
def tempered(y):
    y ^= y >> np.uint32(11)
    y ^= (y << np.uint32(7)) & np.uint32(0x9D2C5680)
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    return y ^ (y >> np.uint32(18))


def make_mask(key: int) -> Any:
    """Return the kernel; `key` is the checksum of this file and becomes part of numba's cache key.

    Its arguments are the 624 words of the generator, the numbers of words left (plus one) and of the next word, the
    mask, the limit below which a value of 53 bits is kept, and the value of the mask there.
    """

    def fill(state, place, mask, limit, value):
        if key < 0:
            return
        block = np.empty(WORDS, np.uint32)
        words = np.empty(WORDS + 1, np.uint32)
        for i in range(WORDS):
            block[i] = np.uint32(state[i])
        left, following = place[0], place[1]
        done, carried = 0, 0  # carried: whether words[0] is the first word of a value whose second is in the next block
        while done < len(mask):
            if left == 1:
                renew(block)
                left, following = WORDS + 1, 0
            taken = min(left - 1, 2 * (len(mask) - done) - carried)
            for i in range(taken):
                words[carried + i] = tempered(block[following + i])
            left -= taken
            following += taken
            values = (carried + taken) // 2
            for i in range(values):
                bits = (np.uint64(words[2 * i] & UPPER) << np.uint64(32)) | np.uint64(words[2 * i + 1])
                mask[done + i] = value if bits < limit else np.float32(0)
            done += values
            carried = carried + taken - 2 * values
            if carried:
                words[0] = words[2 * values]
        for i in range(WORDS):
            state[i] = block[i]
        place[0], place[1] = left, following

    return fill
