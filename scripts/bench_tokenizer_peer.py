"""kigo's tokenizer beside Hugging Face `tokenizers`, both on one thread: the same vocabulary, text, machine and run,
alternating A B A B; medians and their ratios.

usage: bench_tokenizer_peer.py VOCAB.gguf [TEXTFILE] [--kind qwen2] [--repeat 5] [--kigo build/kigo]
Needs tokenizers and gguf (development tools, never dependencies):
  python3 -m venv peer && peer/bin/pip install tokenizers gguf
Without a file the text is the one of `kigo bench --tokenizer`. The peer gets it in parts of 10,000 characters, which is
faster for it than the whole at once; it decodes all ids in one call, as kigo does.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import check_tokenizers
from tokenizers import Tokenizer, decoders, models

PART = 10000


def generated_text(kigo):
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write('io.write(require("kigo.tokenizer_bench").text())')
        script.flush()
        return subprocess.run([kigo, script.name], check=True, stdout=subprocess.PIPE).stdout


class Peer:
    def __init__(self, path, kind):
        vocab, merges = check_tokenizers.vocabulary(path)
        ignore_merges = kind in check_tokenizers.WHOLE_WORDS
        self.tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
        self.tokenizer.pre_tokenizer = check_tokenizers.KINDS[kind]
        self.tokenizer.decoder = decoders.ByteLevel()

    def measure(self, parts, n_bytes):
        """(encode, decode) in bytes per second"""
        start = time.perf_counter()
        ids = [i for part in parts for i in self.tokenizer.encode(part, add_special_tokens=False).ids]
        middle = time.perf_counter()
        self.tokenizer.decode(ids)
        end = time.perf_counter()
        return n_bytes / (middle - start), n_bytes / (end - middle)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vocabulary")
    parser.add_argument("text", nargs="?")
    parser.add_argument("--kind", default="qwen2")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--kigo", default="build/kigo")
    arguments = parser.parse_args()

    data = open(arguments.text, "rb").read() if arguments.text else generated_text(arguments.kigo)
    text = data.decode()
    parts = [text[at : at + PART] for at in range(0, len(text), PART)]
    peer = Peer(arguments.vocabulary, arguments.kind)
    ours, theirs = [], []
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = [arguments.kigo, "bench", "--tokenizer", arguments.vocabulary, file.name, "--pre", arguments.kind]
        for _ in range(arguments.repeat):
            run = subprocess.run(command + ["--json", "--repeat", "3"], check=True, stdout=subprocess.PIPE)
            ours.append(json.loads(run.stdout))
            theirs.append(peer.measure(parts, len(data)))

    def report(what, kigo, other):
        mine, its = statistics.median(kigo) / 1e6, statistics.median(other) / 1e6
        print(
            f"{what}  kigo {mine:6.1f} MB/s ({min(kigo) / 1e6:.1f} to {max(kigo) / 1e6:.1f})   "
            f"tokenizers {its:6.2f} MB/s ({min(other) / 1e6:.2f} to {max(other) / 1e6:.2f})   ratio {mine / its:.1f}"
        )

    print(f"{len(data) / 1e6:.1f} MB, {ours[0]['tokens']} tokens, one thread each")
    report("encode", [run["encode_bytes_per_s"] for run in ours], [run[0] for run in theirs])
    report("decode", [run["decode_bytes_per_s"] for run in ours], [run[1] for run in theirs])


if __name__ == "__main__":
    main()
