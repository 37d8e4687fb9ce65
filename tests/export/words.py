"""Words and signs of many scripts, from which tests make texts for tokenizers."""

WORDS = (
    "cat",
    " sat",
    "  ",
    "\n",
    "\n\n",
    "12",
    "34567",
    "don't",
    "WE'LL",
    "你是誰？",
    "天氣",
    "🎈",
    "é",
    "\t",
    "x=1;",
    "...",
    " ",
    "\r\n",
    "¾",
    "a\u0301",
)
