"""One measurement in a separate process, in the environment of the encoder: JSON in the arguments, JSON on stdout.

Documents are separated by SEPARATOR in one file. Reading it before encoding is not timed; a trainer reads it as a stream.
"""

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEPARATOR = b"\n\0\0\n"
BLOCK = 16_000_000
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)


def stream(path: str) -> Iterator[str]:
    """The documents of a file, as a stream."""
    rest = b""
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            *whole, rest = (rest + block).split(SEPARATOR)
            for document in whole:
                yield document.decode()
    yield rest.decode()


def train(who: str, path: str, vocab_size: int, threads: int, pattern: str) -> dict[str, Any]:
    """Seconds from the file to the vocabulary."""
    began = time.perf_counter()
    if who == "ours":
        import rustbpe

        count = len(rustbpe.train(stream(path), vocab_size, pattern, threads=threads))
    elif who == "gigatoken":  # trains only with GPT-2's pattern
        import gigatoken

        count = len(gigatoken.train_bpe(Path(path), vocab_size, [], separator=SEPARATOR)[0])
    elif who == "rustbpe":
        import rustbpe

        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(stream(path), vocab_size, pattern=pattern)
        count = len(tokenizer.get_mergeable_ranks())
    else:
        raise ValueError(who)
    return {"seconds": time.perf_counter() - began, "tokens": count}


def ranks(path: str) -> list[bytes]:
    """The tokens of a tiktoken rank file."""
    import base64

    return [base64.b64decode(line.split()[0]) for line in Path(path).read_bytes().splitlines()]


def encoder(who: str, path: str, threads: int, pattern: str) -> Callable[[list[str]], Any]:
    """A new encoder with empty caches: documents -> its own form of ids."""
    if who == "ours":
        import rustbpe

        ours = rustbpe.Encoding(ranks(path), pattern)
        return lambda texts: ours.encode_batch(texts, threads=threads)[0]
    if who == "gigatoken":
        import gigatoken

        giga = gigatoken.Tokenizer.from_tiktoken(path, "cl100k")
        return lambda texts: giga.encode_batch(texts, parallel=threads > 1)
    if who == "tiktoken":
        import tiktoken

        tokens = ranks(path)
        tik = tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks={token: i for i, token in enumerate(tokens)}, special_tokens={})
        return lambda texts: tik.encode_ordinary_batch(texts, num_threads=threads)
    if who == "tokenizers":  # `path` is a tokenizer.json
        import tokenizers

        hf = tokenizers.Tokenizer.from_file(path)
        return lambda texts: [one.ids for one in hf.encode_batch(texts, add_special_tokens=False)]
    raise ValueError(who)


def digest(encoded: Any) -> tuple[int, str]:
    """(number of ids, their hash), for any form of ids."""
    import numpy as np

    if type(encoded).__module__.startswith("awkward"):
        import awkward

        encoded = awkward.to_numpy(awkward.flatten(encoded))
    elif isinstance(encoded, list):
        encoded = np.concatenate([np.empty(0, np.uint32), *(np.array(ids, np.uint32) for ids in encoded)])
    return len(encoded), hashlib.sha256(np.asarray(encoded, np.uint32).tobytes()).hexdigest()[:16]


def encode(who: str, path: str, ranks: str, threads: int, pattern: str, passes: int) -> dict[str, Any]:
    """Seconds of each pass of one encoder over all documents, and its output.

    With one thread these are CPU seconds, so that other programs on the machine have little influence.
    """
    import numpy  # noqa: F401  (all of them need it; nobody's first pass should pay for loading it)

    texts = list(stream(path))
    function = encoder(who, ranks, threads, pattern)
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds = []
    for _ in range(passes):
        began = clock()
        encoded = function(texts)
        seconds.append(clock() - began)
    count, hashed = digest(encoded)
    return {"seconds": seconds, "ids": count, "hash": hashed}


def digests(who: str, path: str, ranks: str, threads: int, pattern: str) -> dict[str, Any]:
    """The ids of a file of any size as one hash for each `BLOCK` of its characters, to be compared with another encoder's."""
    function = encoder(who, ranks, threads, pattern)
    found, block, size = [], [], 0
    for text in stream(path):
        block.append(text)
        size += len(text)
        if size >= BLOCK:
            found.append(digest(function(block)))
            block, size = [], 0
    found.append(digest(function(block)))
    return {"ids": sum(count for count, _ in found), "hashes": [hashed for _, hashed in found]}


def peak_memory() -> int:
    """Bytes of this process alone (getrusage's figure begins with that of the process that started it)."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


def main() -> None:
    """Run one task."""
    task = json.loads(sys.argv[1])
    try:
        result = {"train": train, "encode": encode, "digests": digests}[task.pop("task")](**task)
    except BaseException as error:  # tiktoken's PanicException is no Exception
        result = {"error": f"{type(error).__name__}: {str(error)[:80]}"}
    print(json.dumps(result | {"rss": peak_memory()}))


if __name__ == "__main__":
    main()
