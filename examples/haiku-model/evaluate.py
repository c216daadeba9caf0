"""How well the haiku model does its one job: 60 minutes x several topics, sampled.

usage: evaluate.py MODEL.pt LINES_DIR [--per N] [--temp T] [--top-p P]      (needs torch, regex, Debian's festlex-cmu)
Prints the share of answers with three lines, with the word exactly once, with 5-7-5 syllables, that repeat a bank line
by line, and that are new as a whole.
"""

import argparse
import collections
import random

import torch

import haiku_data as H
from syllables import counts
from train import Config, Model, load_checkpoint

LONGEST_ANSWER = 64  # tokens


def bank_lines(banks):
    """Every line of verse that the training text may hold."""
    known = set()
    for bank in banks:
        for lines in bank.lines.values():
            for line in lines:
                known.update(line.replace("{n}", H.number_word(n)) for n in range(60))
    return known


def make_requests(banks, rng, per_minute):
    requests = []
    for minute in range(60):
        word = H.number_word(minute)
        for _ in range(per_minute):
            topic = rng.choice(rng.choice(banks).topics)
            requests.append((word, rng.choice(H.WITH).format(t=topic, w=word)))
    return requests


def draw(logits, temperature, top_p):
    """One id from the nucleus."""
    probabilities, order = (logits / temperature).softmax(-1).sort(descending=True)
    kept = probabilities * (probabilities.cumsum(0) - probabilities < top_p)
    return int(order[torch.multinomial(kept / kept.sum(), 1)])


def answer(net, bpe, request, temperature, top_p):
    ids = bpe.encode(H.chat([("user", request)]))
    start, end = len(ids), bpe.id["<|im_end|>"]
    while len(ids) - start < LONGEST_ANSWER:
        drawn = draw(net(torch.tensor([ids]))[0, -1], temperature, top_p)
        if drawn == end:
            break
        ids.append(drawn)
    return bpe.decode(ids[start:])


def is_5_7_5(lines):
    return len(lines) == 3 and all(wanted in counts(line) for wanted, line in zip((5, 7, 5), lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("lines")
    parser.add_argument("--per", type=int, default=4)
    parser.add_argument("--temp", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--show", type=int, default=8)
    arguments = parser.parse_args()
    checkpoint, bpe = load_checkpoint(arguments.model)
    net = Model(Config(checkpoint["config"]))
    net.load_state_dict(checkpoint["state"])
    net.eval()
    banks = H.load(arguments.lines)
    known = bank_lines(banks)
    torch.manual_seed(5)
    requests = make_requests(banks, random.Random(5), arguments.per)

    passed, n_lines, n_known, texts = collections.Counter(), 0, 0, []
    with torch.no_grad():
        for word, request in requests:
            text = answer(net, bpe, request, arguments.temp, arguments.top_p)
            lines = text.split("\n")
            three, once = len(lines) == 3, H.occurrences(word, text) == 1
            passed["three lines"] += three
            passed["word once"] += once
            passed["three lines, word once"] += three and once
            passed["5-7-5"] += is_5_7_5(lines)
            n_lines += len(lines)
            n_known += sum(line in known for line in lines)
            texts.append(text)
    print("requests:", len(requests))
    for what, n in passed.items():
        print(f"{what}: {n} ({100 * n / len(requests):.1f} %)")
    print(f"lines from the banks: {n_known} of {n_lines}")
    print("different texts:", len(set(texts)))
    for (_, request), text in random.Random(1).sample(list(zip(requests, texts)), arguments.show):
        print(f"\n[{request}]\n{text}")


if __name__ == "__main__":
    main()
