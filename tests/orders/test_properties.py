"""Properties of every registered order: test vector, coverage, reversal, causality, fast path = slow path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from seqssm_kernels import selective_scan

from seqssm import orders

sys.path.insert(0, str(Path(__file__).parent))
from order_cases import CASES, NAMES, odd_one, spec_of, table

IDS = [f"{name}-{geometry}".replace("\n", "")[:40] for name, geometry in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_the_vector_of_the_entry(name):
    example = orders.ENTRIES[name].example
    assert table(example.spec, example.geometry).tolist() == [list(row) for row in example.rows]
    assert orders.ENTRIES[name].summary


@pytest.mark.parametrize(("name", "geometry"), CASES, ids=IDS)
def test_routes_cover_what_they_declare_and_scatter_undoes_gather(name, geometry):
    rows, length = table(spec_of(name), geometry), geometry.positions
    orders.check(rows, length)
    count = orders.coverage(rows, length)
    if name == "phase":
        assert count.max() <= 1
    else:
        assert (count == (1 if name == "atrous" else len(rows))).all()
    x = torch.randn(length)
    for row in rows:
        visited = row[row >= 0]
        back = torch.full((length,), float("nan"))
        back[visited] = x[visited]
        assert torch.equal(back[visited], x[visited])
        assert back.isnan().sum() == length - len(visited)


@pytest.mark.parametrize(("name", "geometry"), CASES, ids=IDS)
def test_reversal_flips_and_undoes_itself(name, geometry):
    forward = orders.routes(spec_of(name))
    backward = orders.routes({"reverse": spec_of(name)})
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(orders.visit(other, geometry), orders.visit(one, geometry).flip(-1))
        assert other.reversed() == one
    assert orders.routes({"reverse": {"reverse": spec_of(name)}}) == forward
    assert orders.routes({"bidirectional": spec_of(name)}) == forward + backward


def segments(row):
    """The positions of a route between resets."""
    parts, current = [], []
    for step in row.tolist():
        if step == orders.RESET:
            parts.append(current)
            current = []
        elif step >= 0:
            current.append(step)
    return [torch.tensor(part, dtype=torch.long) for part in [*parts, current] if part]


def tensors(routes, length, seed=0):
    """Inputs of a scan of E = 2 channels and N = 2 states per route, float64, with strong and weak decay."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, dt = randn(1, length, routes, 2), randn(1, length, routes, 2).abs()
    given = [x, dt, -randn(routes, 2, 2).abs(), randn(1, length, routes, 2), randn(1, length, routes, 2)]
    return [tensor.requires_grad_() for tensor in given]


def slow(x, dt, A, B, C, rows):
    """Run each route separately: gather, scan every segment from its first step, scatter."""
    out = torch.zeros_like(x)
    for r, row in enumerate(rows):
        for index in segments(row):
            part = selective_scan(*(t[:, index, r] for t in (x, dt)), A[r], *(t[:, index, r] for t in (B, C)))
            out[:, index, r] = part
    return out


@pytest.mark.parametrize("name", NAMES)
def test_the_index_in_the_kernel_is_gather_scan_scatter_with_every_gradient(name):
    geometry = odd_one(name)
    rows = table(spec_of(name), geometry)
    given = tensors(len(rows), geometry.positions)
    fast = selective_scan(*given, order=rows.to(torch.int32))
    expected = slow(*given, rows)
    torch.testing.assert_close(fast, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(fast)
    found = torch.autograd.grad((fast * weight).sum(), given)
    for one, other in zip(found, torch.autograd.grad((expected * weight).sum(), given), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_the_receptive_field_is_the_visited_past(name):
    geometry = odd_one(name)
    rows, length = table(spec_of(name), geometry), geometry.positions
    x, *others = tensors(len(rows), length)
    y = selective_scan(x, *others, order=rows.to(torch.int32)).sum(-1)[0]  # (l, r)
    for r, row in enumerate(rows):
        before = torch.zeros(length, length, dtype=torch.bool)
        for index in segments(row):
            for step, position in enumerate(index.tolist()):
                before[position, index[: step + 1]] = True
        reached = torch.stack(
            [torch.autograd.grad(y[p, r], x, retain_graph=True)[0][0, :, r].abs().sum(-1) > 0 for p in range(length)]
        )
        assert torch.equal(reached, before)  # exactly 0 from later steps, other segments and unvisited positions


@pytest.mark.parametrize("name", NAMES)
def test_later_steps_do_not_change_earlier_outputs(name):
    geometry = odd_one(name)
    rows = table(spec_of(name), geometry)
    x, *others = (tensor.detach() for tensor in tensors(len(rows), geometry.positions))
    plain = selective_scan(x, *others, order=rows.to(torch.int32))
    for r, row in enumerate(rows):
        visited = row[row >= 0]
        half = len(visited) // 2
        changed = x.clone()
        changed[:, visited[half:], r] += 1
        found = selective_scan(changed, *others, order=rows.to(torch.int32))
        assert torch.equal(found[:, visited[:half], r], plain[:, visited[:half], r])


def test_ties_keep_their_order():
    count = 4096  # where an unstable sort shuffles
    assert torch.equal(orders.by_score(torch.zeros(count)), torch.arange(count))
    same = orders.Degrees(torch.ones(count))
    assert torch.equal(orders.visit(orders.Order("degree", (("seed", None),)), same), torch.arange(count))
    plane = orders.Coordinates(torch.zeros(count, 2))
    for name in ("row", "column", "serpentine", "hilbert", "morton", "zigzag"):
        (order,) = orders.routes(name)
        assert torch.equal(orders.visit(order, plane), torch.arange(count)), name
