"""kigo beside llama.cpp: the same file, machine, threads and run, alternating A B A B; medians and their ratios.

usage: bench_peer.py MODEL.gguf [--threads 2] [--repeat 5] [--prompt-tokens 512] [--tokens 128] [--kigo build/kigo]
Needs llama-cpp-python (a development tool, never a dependency):
  python3 -m venv peer && CMAKE_ARGS=-DGGML_NATIVE=ON peer/bin/pip install --no-binary llama-cpp-python llama-cpp-python
Neither side samples: both evaluate the same ids and leave the logits where their caller can read them.
"""

import argparse
import json
import statistics
import subprocess
import time

import llama_cpp


class Peer:
    def __init__(self, path, threads, n_context):
        self.llama = llama_cpp.Llama(
            path, n_ctx=n_context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.context = self.llama.ctx

    def evaluate(self, ids):
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_get_logits(self.context)  # waits for the result

    def reset(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def measure(self, n_prompt, n_tokens):
        """(prefill, decode) in tokens per second"""
        self.reset()
        start = time.perf_counter()
        self.evaluate([1000 + i for i in range(n_prompt)])
        middle = time.perf_counter()
        for i in range(n_tokens):
            self.evaluate([2000 + i])
        end = time.perf_counter()
        return n_prompt / (middle - start), n_tokens / (end - middle)


def kigo_bench(arguments):
    command = [arguments.kigo, "bench", arguments.model, "--json", "--repeat", "1", "--device", "cpu"]
    command += ["--threads", arguments.threads, "--prompt-tokens", arguments.prompt_tokens, "--tokens", arguments.tokens]
    return json.loads(subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--kigo", default="build/kigo")
    arguments = parser.parse_args()

    peer = Peer(arguments.model, arguments.threads, arguments.prompt_tokens + arguments.tokens + 64)
    peer.measure(arguments.prompt_tokens, 8)  # warm up
    ours, theirs = [], []
    for _ in range(arguments.repeat):
        ours.append(kigo_bench(arguments))
        theirs.append(peer.measure(arguments.prompt_tokens, arguments.tokens))

    def report(what, kigo, llama):
        mine, other = statistics.median(kigo), statistics.median(llama)
        print(
            f"{what:8} kigo {mine:8.1f} tok/s ({min(kigo):.1f} to {max(kigo):.1f})   "
            f"llama.cpp {other:8.1f} tok/s ({min(llama):.1f} to {max(llama):.1f})   ratio {mine / other:.2f}"
        )

    report("prefill", [run["prefill_tokens_per_s"] for run in ours], [run[0] for run in theirs])
    report("decode", [run["decode_tokens_per_s"] for run in ours], [run[1] for run in theirs])
    share = statistics.median(run["bandwidth_share"] for run in ours)
    bandwidth = statistics.median(run["bandwidth_bytes_per_s"] for run in ours) / 1e9
    print(f"decode reads at {100 * share:.0f} % of the {bandwidth:.1f} GB/s measured on the spot")


if __name__ == "__main__":
    main()
