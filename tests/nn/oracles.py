"""Layers by the equations of their papers, in plain float64: one sequence, step by step."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from seqssm import orders
from seqssm.nn.attention import Attention
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.mamba3 import Mamba3
from seqssm.nn.memory import Memory


def mamba2_by_the_equations(layer, x):
    width, states, groups, heads = layer.width, layer.d_state, layer.n_groups, layer.heads
    own = layer.heads // layer.groups
    total = torch.zeros(len(x), width, dtype=torch.float64)
    table = orders.build(layer.ordering, len(x))
    table = torch.arange(len(x)).expand(len(layer.ordering), -1) if table is None else table
    rows = x @ layer.in_proj.weight.T + (0 if layer.in_proj.bias is None else layer.in_proj.bias)
    for r, route in enumerate(layer.branches):
        of = slice(r * own, r * own + own) if layer.groups > 1 else slice(0, heads)
        h = torch.zeros(own, layer.head_dim, states, dtype=torch.float64)
        taps = route.conv1d.weight[:, 0]
        window = torch.zeros_like(taps)
        for place in table[r].tolist():
            z, u, both, dt = rows[place].split([width, width, 2 * groups * states, heads])
            z, u, dt = z.view(heads, -1)[of], u.view(heads, -1)[of], dt[of]
            window = torch.cat([window[:, 1:], torch.cat([u.flatten(), both])[:, None]], 1)
            c = F.silu((window * taps).sum(1) + (0 if route.conv1d.bias is None else route.conv1d.bias))
            u, B, C = c.split([own * layer.head_dim, groups * states, groups * states])
            u = u.view(own, -1)
            B, C = (m.view(groups, states).repeat_interleave(own // groups, 0) for m in (B, C))
            dt = F.softplus(dt + route.dt_bias).clamp(*layer.dt_limit)
            h = torch.exp(-dt * route.A_log.exp())[:, None, None] * h + dt[:, None, None] * u[:, :, None] * B[:, None]
            y = (h * C[:, None]).sum(-1) + route.D[:, None] * u
            y = (y * F.silu(z)) * (layer.route_weight[r] if layer.merge == "gate" else 1)
            total[place] += F.pad(y.flatten(), (of.start * layer.head_dim, width - of.stop * layer.head_dim))
    total = total / len(table) if layer.merge == "mean" else total
    grouped = total.view(len(x), layer.norm.groups, -1)
    total = (grouped / (grouped.square().mean(-1, keepdim=True) + layer.norm.eps).sqrt()).flatten(1) * layer.norm.weight
    return total @ layer.out_proj.weight.T + (0 if layer.out_proj.bias is None else layer.out_proj.bias)


def rms(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def mamba3_by_the_equations(layer, x):
    heads, states, groups, P = layer.heads, layer.d_state, layer.n_groups, layer.head_dim
    total = torch.zeros(len(x), layer.width, dtype=torch.float64)
    table = orders.build(layer.ordering, len(x))
    table = torch.arange(len(x)).expand(len(layer.ordering), -1) if table is None else table
    rows = x @ layer.in_proj.weight.T + (0 if layer.in_proj.bias is None else layer.in_proj.bias)
    turn = torch.zeros(states // 2, 2, 2, dtype=torch.float64)
    for r, route in enumerate(layer.routes):
        h = torch.zeros(heads, P, states, dtype=torch.float64)
        theta = torch.zeros(heads, layer.angles, dtype=torch.float64)
        previous = torch.zeros_like(h)
        for place in table[r].tolist():
            z, u, B, C, dt, a, trapezoid, angle = rows[place].split(layer.sizes)
            z, u = z.view(heads, P), u.view(heads, P)
            dt = F.softplus(dt + route.dt_bias)
            A = -torch.where(a >= 0, 1 + a, 1 / (1 - a)).clamp(min=1e-4)
            lam = torch.sigmoid(trapezoid)
            theta = theta + math.pi * torch.tanh(angle) * dt[:, None]
            turned = []
            for M, norm, bias in ((B, route.B_norm, route.B_bias), (C, route.C_norm, route.C_bias)):
                M = rms(M.view(groups, states), norm).repeat_interleave(heads // groups, 0) + bias
                out = M.clone()
                for head in range(heads):
                    for i in range(layer.angles):
                        t = theta[head, i]
                        turn = torch.stack([torch.stack([t.cos(), -t.sin()]), torch.stack([t.sin(), t.cos()])])
                        out[head, 2 * i : 2 * i + 2] = turn @ M[head, 2 * i : 2 * i + 2]
                turned.append(out)
            B, C = turned
            alpha = torch.exp(dt * A)[:, None, None]
            now = u[:, :, None] * B[:, None]
            h = alpha * h + ((1 - lam) * dt)[:, None, None] * alpha * previous + (lam * dt)[:, None, None] * now
            previous = now
            y = (h * C[:, None]).sum(-1) + route.D[:, None] * u
            y = y if layer.norm is None else rms(y, layer.norm)
            y = (y * F.silu(z)).flatten()
            total[place] += y * (layer.route_weight[r] if layer.merge == "gate" else 1)
    total = total / len(table) if layer.merge == "mean" else total
    return total @ layer.out_proj.weight.T + (0 if layer.out_proj.bias is None else layer.out_proj.bias)


def attention_by_the_equations(layer, x):
    d, length = layer.head_dim, len(x)
    rows = F.linear(x, layer.in_proj.weight, layer.in_proj.bias)
    q, k, v = rows.view(length, -1, d).split([layer.n_heads, layer.n_kv_heads, layer.n_kv_heads], 1)
    out = torch.zeros(length, layer.n_heads, d, dtype=torch.float64)
    reach = length if layer.window is None else layer.window
    for t in range(length):
        seen = [s for s in range(length) if abs(s - t) < reach and (s <= t or not layer.causal)]
        for head in range(layer.n_heads):
            group = head // (layer.n_heads // layer.n_kv_heads)
            weight = torch.softmax((k[seen, group] @ q[t, head]) / d**0.5, 0)
            out[t, head] = weight @ v[seen, group]
    return F.linear(out.flatten(1), layer.out_proj.weight, layer.out_proj.bias)


def memory_by_the_equations(layer, x, below=(), history=None):
    """One position after the other; the pool is a list of (importance before the sigmoid, summary), oldest first.

    `below` holds the histories of the memory layers that this one reads: the pool before each position. That of this
    layer is appended to `history`.
    """
    S, d = layer.summary_dim, layer.summary_dim // layer.n_heads
    pool, pending, out = [], [], []
    for t, now in enumerate(x):
        if history is not None:
            history.append(list(pool))
        rows = F.linear(now, layer.in_proj.weight, layer.in_proj.bias)
        query, fusion, summary = rows.split([layer.read, layer.read, S])
        importance, state = F.linear(now, layer.scores.weight, layer.scores.bias)

        def attend(q, entries):
            if not entries:
                return torch.zeros(S, dtype=torch.float64)
            found = []
            for head in range(layer.n_heads):
                own = slice(head * d, head * d + d)
                k = torch.stack([entry[own] for _, entry in entries])
                weight = torch.ones(len(entries), dtype=torch.float64)
                if layer.gate == "soft":
                    i = torch.sigmoid(torch.stack([score for score, _ in entries]))
                    odds = layer.token_threshold / (1 - layer.token_threshold)
                    weight = (i / (1 - i)) / (i / (1 - i) + odds)
                weight = weight * torch.exp(k @ q[own] / d**0.5)
                found.append(weight @ k / (1 + weight.sum()))
            return torch.cat(found)

        score = torch.sigmoid(state)
        gate = (score > layer.state_threshold).double()
        if layer.gate == "soft":
            odds = layer.state_threshold / (1 - layer.state_threshold)
            gate = (score / (1 - score)) / (score / (1 - score) + odds)
        c = gate * attend(query[:S], pool)
        if layer.across:
            others = [entry for one in below[-layer.across :] for entry in one[t]]
            c = torch.cat([c, attend(query[S:], others)])
        out.append(F.linear(torch.sigmoid(fusion) * c, layer.out_proj.weight, layer.out_proj.bias))
        if torch.sigmoid(importance) > layer.token_threshold:
            pending.append((importance, summary))
        if (t + 1) % layer.interval == 0:
            for entry in pending:
                pool.append(entry)
                if len(pool) > layer.pool_size:
                    leaves = 0
                    if layer.replacement == "priority":
                        leaves = min(range(len(pool)), key=lambda i: (pool[i][0].item(), -i))
                    del pool[leaves]
            pending = []
    return torch.stack(out)


ORACLES = {
    Mamba2: mamba2_by_the_equations,
    Mamba3: mamba3_by_the_equations,
    Attention: attention_by_the_equations,
    Memory: memory_by_the_equations,
}
