"""In llama-cpp-python's environment: a GGUF file and prompts on stdin; ids, greedy continuations, chat answers and losses on stdout."""

import json
import math
import sys

from llama_cpp import Llama

F32 = 0  # ggml's number of that type


def main() -> None:
    """{path, context, prompts: [text], new, chats: [[message]], scored: [ids]} -> {ids, greedy, answers, nats}, in float32 throughout.

    nats: the loss of each id but the first of `scored`, summed.
    """
    task = json.load(sys.stdin)
    cache = {"type_k": F32, "type_v": F32, "flash_attn": False}
    model = Llama(task["path"], n_ctx=task["context"], n_threads=1, verbose=False, logits_all=True, **cache)
    ids, greedy = [], []
    for prompt in task["prompts"]:
        ids.append(model.tokenize(prompt.encode(), add_bos=False, special=True))
        model.reset()
        new: list[int] = []
        for token in model.generate(ids[-1], top_k=1, temp=0.0, repeat_penalty=1.0):
            new.append(token)
            if len(new) == task["new"]:
                break
        greedy.append(new)
    options = {"temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0, "max_tokens": task["new"]}
    answers = [model.create_chat_completion(chat, **options)["choices"][0]["message"]["content"] for chat in task["chats"]]
    nats = 0.0
    for row in task.get("scored", []):
        model.reset()
        model.eval(row[:-1])
        for logits, wanted in zip(model.scores[: len(row) - 1].astype("float64"), row[1:], strict=True):
            top = logits.max()
            nats += top + math.log(sum(math.exp(value - top) for value in logits)) - logits[wanted]
    print(json.dumps({"ids": ids, "greedy": greedy, "answers": answers, "nats": nats}))


main()
