"""Claim: BPE training is at least twice as fast as gigatoken's trainer and five times as fast as rustbpe 0.1.0, with less memory.

    bench/bpe_train.py [--text FOLDER_OF_PARQUET] [--mb 100] [--threads 2] [--rounds 5]

Prints seconds (medians of alternating runs) and peak memory, then this trainer's time by size of the text, and the merges' share.
Without --text: the Python files of this environment.
"""

import argparse
from pathlib import Path

from bpe.peers import alternate, measure, median, parquet_texts, peers_python, source_texts, written

from nanochat.tokenizer.tokenizer import SPLIT_PATTERN


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path)
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--growth", type=int, nargs="*", default=[25, 100, 400])
    parser.add_argument("--vocab", type=int, default=32_768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    peers = peers_python()

    def texts():
        return parquet_texts(arguments.text) if arguments.text else source_texts()

    task = {"task": "train", "threads": arguments.threads, "pattern": SPLIT_PATTERN}
    with written(texts(), arguments.mb * 1_000_000) as (path, size):
        runs = alternate(("ours", "gigatoken", "rustbpe"), arguments.rounds, peers, path=path, vocab_size=arguments.vocab, **task)
    ours = median(runs["ours"], "seconds")
    print(f"{size / 1e6:.0f} MB, vocabulary {arguments.vocab:,}, {arguments.threads} threads, medians of {arguments.rounds}")
    for who, done in runs.items():
        if "error" in done[-1]:
            print(f"{who:10} {done[-1]['error']}")
            continue
        seconds = median(done, "seconds")
        peak, tokens = median(done, "rss") / 1e6, done[0]["tokens"]
        print(f"{who:10} {seconds:6.2f} s ({seconds / ours:4.1f} times rustbpe's), peak {peak:5.0f} MB, {tokens:,} tokens", flush=True)
    print("growth of rustbpe: MB, seconds, of which counting (a vocabulary of 256), peak MB")
    for mb in arguments.growth:
        with written(texts(), mb * 1_000_000) as (path, size):
            if size < mb * 950_000:
                print(f"there are only {size / 1e6:.0f} MB of text")
                break
            whole, counting = (
                [measure("ours", peers, path=path, vocab_size=vocab, **task) for _ in range(arguments.rounds)]
                for vocab in (arguments.vocab, 256)
            )
        seconds, count = median(whole, "seconds"), median(counting, "seconds")
        print(f"{size / 1e6:5.0f} {seconds:6.2f} {count:6.2f} (merging {1 - count / seconds:.0%}) {median(whole, 'rss') / 1e6:5.0f}")


if __name__ == "__main__":
    main()
