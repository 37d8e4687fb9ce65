"""One answer's pieces: whatever the tokens' boundaries, the text is the same, and it ends before the first stop string."""

from hypothesis import given
from hypothesis import strategies as st

from nanochat.chat.stream import AnswerStream, Call, Piece
from nanochat.generate.batching import Row, Token
from nanochat.generate.sampling import LogProbs, Sampling
from nanochat.tokenizer.conversation import SPECIAL_TOKENS
from nanochat.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)] + [b"ab", b"bc", b"abc", "你".encode()])
END = TOKENIZER.special("<|assistant_end|>")


def ids_of(text: str) -> list[int]:
    """Ids of a text in which specials are spelt <|name|>."""
    ids: list[int] = []
    while text:
        name = next((name for name in SPECIAL_TOKENS if text.startswith(name)), None)
        ids += [TOKENIZER.special(name)] if name else TOKENIZER.encode(text[0])
        text = text[len(name or " ") :]
    return ids


def pieces_of(ids: list[int], stop: list[str], room: int = 1000) -> tuple[list[Piece], str | None]:
    """The pieces of an answer that consists of `ids`, and why it ended."""
    row, stream = Row(TOKENIZER, [1], room, Sampling(0.0)), AnswerStream(TOKENIZER, stop)
    pieces: list[Piece] = []
    queue = list(ids)
    while queue and not stream.finish:
        before = row._forced[0] if row._forced else None
        token, forced = row.advance(queue[0])
        if before is None:
            queue.pop(0)
        pieces += stream.push(Token(row, token, forced, None))
    return pieces, stream.finish


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


@given(st.text(alphabet="abc你\n", max_size=30), st.lists(st.text(alphabet="abc你", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    pieces, finish = pieces_of([*TOKENIZER.encode(text), END], stop)
    ends = [text.find(one) for one in stop if one in text]
    # The stop string that is complete first ends the answer; of several that are complete at the same token, the one that begins first.
    if not ends:
        assert (text_of(pieces), finish) == (text, "stop")
    else:
        assert finish == "stop"
        said = text_of(pieces)
        assert text.startswith(said)
        assert not any(one in said for one in stop)
        assert any(text[len(said) :].startswith(one) for one in stop)


def test_no_piece_is_half_a_code_point() -> None:
    pieces, finish = pieces_of([*"你好".encode(), END], [])
    assert (pieces, finish) == (["你", "好"], "stop")
    assert pieces_of([0xE4, 0xBD, END], []) == (["\ufffd"], "stop")
    assert pieces_of([0xE4, 0xBD], [], room=2) == (["\ufffd"], "length")


def test_calculator_calls_stand_at_their_place() -> None:
    pieces, finish = pieces_of(ids_of("It is <|python_start|>12+34<|python_end|>") + ids_of("46.<|assistant_end|>"), [])
    assert finish == "stop"
    assert [piece for piece in pieces if isinstance(piece, Call)] == [Call("12+34", "46")]
    assert text_of(pieces[: pieces.index(Call("12+34", "46"))]) == "It is "
    assert text_of(pieces) == "It is 46."


def test_a_call_without_a_value() -> None:
    pieces, _ = pieces_of(ids_of("<|python_start|>1/0<|python_end|>none<|assistant_end|>"), [])
    assert Call("1/0", None) in pieces
    assert text_of(pieces) == "none"


def test_held_text_comes_before_a_call() -> None:
    pieces, _ = pieces_of(ids_of("xab<|python_start|>1+1<|python_end|>") + ids_of("2<|assistant_end|>"), ["abz"])
    assert text_of(pieces) == "xab2"
    assert text_of(pieces[: pieces.index(Call("1+1", "2"))]) == "xab"


def test_log_probabilities_are_of_visible_tokens() -> None:
    row, stream = Row(TOKENIZER, [1], 9, Sampling(0.0), top=1), AnswerStream(TOKENIZER)
    for id in (97, END):
        token, forced = row.advance(id)
        stream.push(Token(row, token, forced, LogProbs(-0.5, [(98, -0.1)])))
    assert [(one.text, one.log_prob, one.top) for one in stream.log_probs] == [(b"a", -0.5, [(b"b", -0.1)])]
