"""Whether a Chinese text is in Traditional or in Simplified characters."""

import re

# Characters that only one of the two ways of writing has, among the most frequent ones.
TRADITIONAL, SIMPLIFIED = (
    frozenset("這個們國學說時來對會過後還發現開關為從與無業動點實體麼"),
    frozenset("这个们国学说时来对会过后还发现开关为从与无业动点实体么"),
)
LOOKED_AT = 4000  # characters of a text
_SIMPLIFIED, _TRADITIONAL = (re.compile(f"[{''.join(sorted(only))}]") for only in (SIMPLIFIED - TRADITIONAL, TRADITIONAL - SIMPLIFIED))


def is_simplified(text: str) -> bool:
    """Whether a text is in Simplified Chinese: it has such characters, more than a third as many as Traditional ones, and not only a few.

    The characters above are a tenth of a Chinese text. A Traditional or English text that quotes some words in Simplified Chinese is not.
    """
    sample = text[:LOOKED_AT]
    simplified = len(_SIMPLIFIED.findall(sample))
    return 200 * simplified > len(sample) and 3 * simplified > len(_TRADITIONAL.findall(sample))
