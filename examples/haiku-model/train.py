"""Train the small haiku model: Qwen2 architecture, from scratch, on samples drawn from the line banks.

usage: train.py LINES_DIR OUT.pt [--steps N] [--minutes M] [--threads T] [--resume FROM.pt]      (needs torch, regex)
The shipped model took 68 + 30 minutes on two CPU cores (see CARD.md); a GPU does it in minutes.
"""

import argparse
import math
import random
import time

import torch
import torch.nn.functional as F

import haiku_data as H


class Config(dict):
    __getattr__ = dict.__getitem__


DEFAULT = Config(
    vocab=2048, dim=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffn=768, theta=10000.0, eps=1e-6, context=512
)


class RMSNorm(torch.nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate_halves(x, cos, sin):
    """Channels i and i + head_dim / 2 turn together."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Block(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.attn_norm = RMSNorm(c.dim, c.eps)
        self.ffn_norm = RMSNorm(c.dim, c.eps)
        self.q = torch.nn.Linear(c.dim, c.heads * c.head_dim)
        self.k = torch.nn.Linear(c.dim, c.kv_heads * c.head_dim)
        self.v = torch.nn.Linear(c.dim, c.kv_heads * c.head_dim)
        self.o = torch.nn.Linear(c.heads * c.head_dim, c.dim, bias=False)
        self.gate = torch.nn.Linear(c.dim, c.ffn, bias=False)
        self.up = torch.nn.Linear(c.dim, c.ffn, bias=False)
        self.down = torch.nn.Linear(c.ffn, c.dim, bias=False)

    def heads(self, x, n):
        """(batch, time, n * head_dim) -> (batch, n, time, head_dim)"""
        batch, time_steps, _ = x.shape
        return x.view(batch, time_steps, n, self.config.head_dim).transpose(1, 2)

    def attention(self, h, cos, sin, mask):
        c = self.config
        q = rotate_halves(self.heads(self.q(h), c.heads), cos, sin)
        k = rotate_halves(self.heads(self.k(h), c.kv_heads), cos, sin)
        v = self.heads(self.v(h), c.kv_heads)
        group = c.heads // c.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(c.head_dim) + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.o(mixed.reshape(*h.shape[:2], -1))

    def forward(self, x, cos, sin, mask):
        x = x + self.attention(self.attn_norm(x), cos, sin, mask)
        h = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.embed = torch.nn.Embedding(c.vocab, c.dim)
        self.blocks = torch.nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.dim, c.eps)
        self.init_weights()
        frequencies = c.theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angles = torch.outer(torch.arange(c.context).float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def init_weights(self):
        """Normal 0.02; what feeds the residual stream is scaled down with the depth, as in GPT-2."""
        residual = 1 / math.sqrt(2 * self.config.layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = residual if name.endswith(("o.weight", "down.weight")) else 1
                torch.nn.init.normal_(parameter, std=0.02 * scale)
            elif name.endswith("bias"):
                torch.nn.init.zeros_(parameter)

    def hidden(self, ids):
        n = ids.shape[1]
        mask = torch.full((n, n), float("-inf"), device=ids.device).triu(1)
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, self.cos[:n], self.sin[:n], mask)
        return self.norm(x)

    def forward(self, ids):
        return self.hidden(ids) @ self.embed.weight.T


def batch(banks, bpe, rng, size):
    """(ids, goals), both (size, longest); goals are -100 where nothing is asked: in the prompt and the padding."""
    rows = []
    for _ in range(size):
        messages, lines, _ = H.sample(banks, rng)
        rows.append((bpe.encode(H.chat(messages)), bpe.encode("\n".join(lines) + "<|im_end|>")))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(size, longest, dtype=torch.long)
    goals = torch.full((size, longest), -100)
    for i, (prompt, answer) in enumerate(rows):
        n = len(prompt) + len(answer)
        ids[i, :n] = torch.tensor(prompt + answer)
        goals[i, len(prompt) - 1 : n - 1] = torch.tensor(answer)
    return ids, goals


def learn_vocabulary(banks, rng, size):
    texts = []
    for _ in range(30000):
        messages, lines, _ = H.sample(banks, rng)
        prompt = H.chat(messages)
        texts.append(prompt.replace("<|im_start|>", "").replace("<|im_end|>", ""))
        texts.append("\n".join(lines))
    return H.BPE(H.train_bpe(texts, size))


def load_checkpoint(path):
    """(checkpoint, tokenizer)"""
    checkpoint = torch.load(path, map_location="cpu")
    return checkpoint, H.BPE([tuple(pair) for pair in checkpoint["merges"]])


def save_checkpoint(path, net, bpe, step, loss):
    torch.save(
        {"config": dict(net.config), "merges": bpe.merges, "state": net.state_dict(), "step": step, "loss": loss}, path
    )


def learning_rate(peak, n_steps, done):
    """Warm-up over 100 steps, then a cosine down to 3 % of the peak; `done` runs from 0 to 1."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1, done)))
    return peak * min(1, (n_steps + 1) / 100) * (0.97 * cosine + 0.03)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    banks = H.load(arguments.lines)
    rng = random.Random(arguments.seed)
    start = 0
    if arguments.resume:
        old, bpe = load_checkpoint(arguments.resume)
        net = Model(Config(old["config"]))
        net.load_state_dict(old["state"])
        start = old["step"]
    else:
        bpe = learn_vocabulary(banks, rng, DEFAULT.vocab)
        net = Model(DEFAULT)
    assert len(bpe.tokens) == net.config.vocab, len(bpe.tokens)
    net = net.to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.05)
    print("parameters", sum(p.numel() for p in net.parameters()), flush=True)

    began = since = time.time()
    n_tokens, average, step = 0, None, start
    while step < start + arguments.steps:
        minutes = (time.time() - began) / 60
        done = max((step - start) / arguments.steps, minutes / arguments.minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments.lr, step - start, done)
        ids, goals = (t.to(device) for t in batch(banks, bpe, rng, arguments.batch))
        asked = goals >= 0  # logits only where they count
        loss = F.cross_entropy(net.hidden(ids)[asked] @ net.embed.weight.T, goals[asked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        n_tokens += ids.numel()
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        if step % 50 == 0:
            speed = n_tokens / (time.time() - since)
            print(f"step {step} loss {average:.3f} {speed:.0f} tok/s {minutes:.1f} min", flush=True)
            since, n_tokens = time.time(), 0
        if step % 500 == 0:
            save_checkpoint(arguments.out, net, bpe, step, average)
    save_checkpoint(arguments.out, net, bpe, step, average)
    print("saved", arguments.out)


if __name__ == "__main__":
    main()
