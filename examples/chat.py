"""A conversation, printed word by word as it is generated: `python examples/chat.py [--model NAME] [QUESTION ...]`.

Without `--model` a small Llama is trained in seconds on conversations that are made up here. With a terminal and no
questions it asks for them.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tiny import END, SPECIAL, Batch, encode, labels_of, quiet, train, word_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, TextStreamer

import smelt

Messages = list[dict[str, str]]

USER, BOT = "<user>", "<bot>"
TEMPLATE = (
    "{{ bos_token }} {% for message in messages %}{% if message['role'] == 'user' %}<user>{% else %}<bot>{% endif %} "
    "{{ message['content'] }} {% if message['role'] != 'user' %}</s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
QUESTIONS = ("hello !", "what does a cow say ?", "where does a whale live ?", "what is 3 plus 4 ?")
ANIMALS = {
    "dog": ("woof", "in a house", "four"),
    "cat": ("meow", "in a house", "four"),
    "cow": ("moo", "on a farm", "four"),
    "duck": ("quack", "on a pond", "two"),
    "bee": ("buzz", "in a hive", "six"),
    "owl": ("hoot", "in a wood", "two"),
    "whale": ("nothing that we hear", "in the sea", "no"),
    "spider": ("nothing", "in a web", "eight"),
}


def exchange(made: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    animal = made.choice(list(ANIMALS))
    sound, home, legs = ANIMALS[animal]
    a, b = made.randrange(10), made.randrange(10)
    return made.choice(
        [
            ("hello !", "hello , ask me about animals or sums ."),
            (f"what does a {animal} say ?", f"a {animal} says {sound} ."),
            (f"where does a {animal} live ?", f"a {animal} lives {home} , as far as I know ."),
            (f"how many legs has a {animal} ?", f"a {animal} has {legs} legs ."),
            (f"what is {a} plus {b} ?", f"{a} plus {b} is {a + b} ."),
        ]
    )


def conversation(made: random.Random, turns: int) -> Messages:
    """Several questions with their answers."""
    pairs = [exchange(made) for _ in range(turns)]
    return [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def tiny_model(steps: int) -> tuple[Any, Any]:
    """A small Llama that has learned the conversations, and its tokenizer."""
    made = random.Random(1)
    texts = [text for _ in range(3000) for text in exchange(made)]
    tokenizer = word_tokenizer(texts, (USER, BOT), ends=False)
    tokenizer.chat_template, tokenizer.padding_side = TEMPLATE, "left"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, **SPECIAL,
    )  # fmt: skip
    model = LlamaForCausalLM(config)

    def batch(made: random.Random) -> Batch:
        texts = [tokenizer.apply_chat_template(conversation(made, 3), tokenize=False) for _ in range(24)]
        found = encode(tokenizer, texts)
        ids = found["input_ids"]
        begun, ended = ((ids == tokenizer.convert_tokens_to_ids(token)).cumsum(1) for token in (BOT, END))
        # what the user says is not learned: an answer goes from after BOT to its END
        answers = (begun > ended.roll(1, 1)) & (ids != tokenizer.convert_tokens_to_ids(BOT))
        return found | {"labels": labels_of(found).masked_fill(~answers, -100)}

    train(model, batch, steps)
    return model, tokenizer


class CountingStreamer(TextStreamer):
    """Prints words as they come, and counts the tokens."""

    tokens = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += 0 if self.next_tokens_are_prompt else value.numel()
        super().put(value)


def answer(model: Any, tokenizer: Any, messages: Messages, most: int, shown: bool) -> tuple[list[int], float]:
    """The tokens of an answer, printed as they come where `shown`, and the seconds that it took."""
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    streamer = CountingStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if shown else None
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    start = time.perf_counter()
    found = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=most, do_sample=False,
        streamer=streamer, pad_token_id=pad,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    return found[0, inputs["input_ids"].shape[1] :].tolist(), seconds


def questions(given: list[str]) -> Iterator[str]:
    """The questions of the command line, of a terminal, or of this file."""
    if given or not sys.stdin.isatty():
        yield from given or QUESTIONS
        return
    print("ask something; an empty line ends it")
    while text := input("> ").strip():
        yield text


def converse(fast: Any, eager: Any, tokenizer: Any, asked: Iterable[str], most: int) -> bool:
    """Answer questions one after another, each with what was said before; whether eager says the same."""
    messages: Messages = []
    tokens, seconds, same = 0, [0.0, 0.0], True
    for question in asked:
        messages.append({"role": "user", "content": question})
        print(f"\n{question}\n  ", end="")
        ours, time_ours = answer(fast, tokenizer, messages, most, shown=True)
        theirs, time_theirs = answer(eager, tokenizer, messages, most, shown=False)
        messages.append({"role": "assistant", "content": tokenizer.decode(ours, skip_special_tokens=True)})
        same &= ours == theirs
        if len(messages) > 2:  # the first answer holds the compilation
            tokens, seconds = tokens + len(ours), [seconds[0] + time_ours, seconds[1] + time_theirs]
    if tokens:
        print(f"\n{tokens} tokens after the first answer: smelt {tokens / seconds[0]:.0f} tokens/s, ", end="")
        print(f"eager {tokens / seconds[1]:.0f} tokens/s", end="")
    print(f"\ntokens {'the same as' if same else 'NOT those of'} eager's")
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*")
    parser.add_argument("--model", help="a chat model on the Hugging Face hub, or its folder")
    parser.add_argument("--tokens", type=int, default=40, help="tokens of an answer at most")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the small model")
    given = parser.parse_args()
    quiet()
    if given.model:
        model = AutoModelForCausalLM.from_pretrained(given.model).eval()
        tokenizer = AutoTokenizer.from_pretrained(given.model)
    else:
        model, tokenizer = tiny_model(given.steps)
    fast = smelt.compile(model)
    if not converse(fast, model, tokenizer, questions(given.questions), given.tokens):
        sys.exit("the compiled model's tokens are not eager's")


if __name__ == "__main__":
    main()
