"""The simplex ETF, the dual selective projector and the losses of classes learned later, from their equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seqssm.nn.etf import EtfHead, last_layer, make_head, simplex_etf
from seqssm.nn.selective_projector import DualProjector, SelectiveBranch, segment_means
from seqssm.orders import Grid, build, routes
from seqssm.training.class_losses import dot_regression, gate_size, separation, suppression


@pytest.mark.parametrize(("width", "classes"), [(2, 2), (5, 3), (64, 64), (40, 17)])
def test_directions_have_length_one_and_equal_angles(width, classes):
    found = simplex_etf(width, classes).double()
    gram = found @ found.T
    expected = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64)
    expected.fill_diagonal_(1)
    assert torch.allclose(gram, expected, atol=1e-6)
    assert float(found.sum(0).abs().max()) < 1e-6


@pytest.mark.parametrize("classes", [1, 9])
def test_more_classes_than_the_width_are_refused(classes):
    with pytest.raises(ValueError, match="2 to 8 classes"):
        simplex_etf(8, classes)


def test_logits_of_a_class_do_not_depend_on_the_classes_in_use():
    x = torch.randn(33, 24, generator=torch.Generator().manual_seed(0))
    few, many = EtfHead(24, 5, 20), EtfHead(24, 13, 20)
    assert torch.equal(few(x), many(x)[:, :5])
    cosine = F.cosine_similarity(x[:, None], simplex_etf(24, 20)[None, :5], dim=-1)
    assert torch.allclose(few(x), few.scale * cosine, atol=1e-5)
    assert list(few.parameters()) == []
    with pytest.raises(ValueError, match="21 classes"):
        EtfHead(24, 21, 20)


def test_heads_by_name():
    assert isinstance(make_head(8, 3), nn.Linear)
    assert make_head(8, 3, "etf").max_classes == 3
    assert last_layer(nn.Sequential(nn.Dropout(), make_head(8, 3, "etf", 6))).max_classes == 6
    with pytest.raises(TypeError, match="ReLU"):
        last_layer(nn.ReLU())


def loop(branch: SelectiveBranch, tokens: torch.Tensor) -> torch.Tensor:
    """The branch in float64, position by position along every route."""
    p = {name: value.detach().double() for name, value in branch.state_dict().items()}
    x = tokens.double()
    wide = x @ p["widen.weight"].T + p["widen.bias"]
    mean, var = wide.mean((1, 2), keepdim=True), wide.var((1, 2), keepdim=True, correction=0)
    wide = (wide - mean) / (var + 1e-5).sqrt() * p["norm.weight"] + p["norm.bias"]
    x = torch.where(wide > 0, wide, 0.1 * wide) @ p["narrow.weight"].T + p["positions"]
    u, z = (x @ p["in_proj.weight"].T).chunk(2, -1)
    silu = lambda value: value / (1 + (-value).exp())  # noqa: E731
    table = build(branch.ordering, tokens.shape[1] if branch.geometry is None else branch.geometry)
    table = torch.arange(tokens.shape[1])[None] if table is None else table.reshape(-1, table.shape[-1])
    rank, states = branch.settings.dt_rank, branch.settings.d_state
    out = torch.zeros_like(u)
    for order in table:
        for b in range(len(x)):
            window = torch.zeros(branch.width, 4, dtype=torch.float64)
            h = torch.zeros(branch.width, states, dtype=torch.float64)
            for place in order.tolist():
                window = torch.cat([window[:, 1:], u[b, place][:, None]], 1)
                v = silu((window * p["conv1d.weight"][:, 0]).sum(1) + p["conv1d.bias"])
                low, own_b, own_c = (p["x_proj.weight"] @ v).split([rank, states, states])
                dt = F.softplus(p["dt_proj.weight"] @ low + p["dt_proj.bias"])
                h = (dt[:, None] * -p["A_log"].exp()).exp() * h + (dt * v)[:, None] * own_b
                out[b, place] += (h @ own_c + p["D"] * v) * silu(z[b, place])
    return out.mean(1)


@pytest.mark.parametrize(
    ("positions", "options"),
    [(7, {}), (6, {"ordering": "cross", "geometry": Grid(2, 3)}), (5, {"ordering": "forward"})],
)
def test_the_branch_is_that_of_the_equations(positions, options):
    torch.manual_seed(1)
    branch = SelectiveBranch(8, positions, d_state=3, **options)
    tokens = torch.randn(3, positions, 8)
    expected = loop(branch, tokens)
    assert torch.allclose(branch(tokens).double(), expected, atol=1e-5)
    found = branch.select(tokens)
    assert found.gate.shape == (3, positions, 8)
    assert found.dt.shape == (3, positions, 2)
    assert found.B.shape == found.C.shape == (3, positions, 3)
    assert len(routes(options.get("ordering", "bidirectional"))) == {7: 2, 6: 4, 5: 1}[positions]


def test_the_new_branch_starts_at_exactly_zero_and_is_trainable():
    torch.manual_seed(2)
    base, dual = DualProjector(8, "base", 5), DualProjector(8, "dual", 5)
    dual.base.load_state_dict(base.base.state_dict())
    pooled, tokens = torch.randn(4, 8), torch.randn(4, 5, 8)
    assert torch.equal(dual.new(tokens), torch.zeros(4, 8))
    assert not dual.new.select(tokens).gate.any()
    assert torch.equal(dual(pooled, tokens), base(pooled, tokens))
    assert not torch.equal(base(pooled, tokens), pooled)
    dual(pooled, tokens).square().sum().backward()
    assert float(dual.new.in_proj.weight.grad[8:].abs().sum()) > 0
    dual.new.reset_parameters()
    assert torch.equal(dual.new(tokens), torch.zeros(4, 8))


def test_segments_are_means_of_the_valid_positions():
    x = torch.arange(12, dtype=torch.float32).reshape(1, 12, 1)
    assert segment_means(x, 4)[0, :, 0].tolist() == [1, 4, 7, 10]
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0]], dtype=torch.bool)  # 1 2 4 5 6 8
    assert segment_means(x, 3, mask)[0, :, 0].tolist() == [1.5, 4.5, 7]
    assert segment_means(x[:, :2], 4)[0, :, 0].tolist() == [0, 0, 1, 1]
    adaptive = F.adaptive_avg_pool1d(torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(3)), 4)
    again = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(3)).transpose(1, 2)
    assert torch.allclose(segment_means(again, 4), adaptive.transpose(1, 2), atol=1e-6)


def test_losses_by_hand():
    cosines, y = torch.tensor([[0.5, 0.1], [0.2, 0.0]]), torch.tensor([0, 1])
    assert float(dot_regression(cosines, y)) == pytest.approx(5 * (0.25 + 1) / 2)
    weighted = dot_regression(cosines, y, torch.tensor([3.0, 1.0]))
    assert float(weighted) == pytest.approx(5 * (3 * 0.25 + 1) / 4)
    base, novel = torch.full((2, 3, 4), 2.0), torch.full((1, 3, 4), 3.0)
    assert float(gate_size(base)) == pytest.approx(2)
    assert float(suppression(base, novel, 100, 0.5)) == pytest.approx(100 * 2 - 0.5 * 3, rel=1e-5)
    torch.manual_seed(0)
    branch = SelectiveBranch(4, 5, d_state=3).requires_grad_(False)
    one, two = branch.select(torch.randn(2, 5, 4)), branch.select(torch.randn(3, 5, 4))
    total = 0.0
    for name in ("dt", "B", "C"):
        a, b = getattr(one, name).mean((0, 1)), getattr(two, name).mean((0, 1))
        total += 2 * abs(float(a @ b / (a.norm() * b.norm()))) / 4
    assert float(separation(one, two)) == pytest.approx(total, rel=1e-4)
    assert float(separation(one, one)) == pytest.approx(3 * 0.5, rel=1e-4)
