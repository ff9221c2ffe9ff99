"""The division of Triton calls: calls that fill the GPU run unsplit, small batches of long sequences are split."""

from __future__ import annotations

import json

import pytest
from seqssm_kernels.contract.calls import ConvSizes, ScanSizes
from seqssm_kernels.gpu import plan

H100 = 132


def sizes(batch, steps, channels, routes=1, sequences=None):
    return ScanSizes(batch, steps, steps, routes, channels, 16, batch if sequences is None else sequences)


@pytest.mark.parametrize(
    ("shape", "split"),
    [((64, 512, 2048), False), ((64, 512, 768), False), ((1, 131072, 512), True), ((1, 1048576, 256), True)],
)
@pytest.mark.parametrize("backward", [False, True])
def test_which_calls_are_split(shape, split, backward):
    division = plan.divide(sizes(*shape), H100, plan.Config(), backward, packed=False)
    assert division.split == split


def test_the_forward_pass_of_a_language_model_is_split_into_one_wave():
    """Its 256 programs are one warp for every second scheduler, which is slower than the exponentials taken twice."""
    division = plan.divide(sizes(8, 4096, 2048), H100, plan.Config(), backward=False, packed=False)
    assert division.split
    assert 0.9 * 12 * H100 <= 8 * 32 * division.per_row <= 12 * H100


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("shape", [(1, 131072, 512), (1, 1048576, 256), (2, 100000, 1024), (1, 5000, 64)])
def test_a_split_fills_the_gpu(shape, backward):
    division = plan.divide(sizes(*shape), H100, plan.Config(), backward, packed=False)
    assert division.chunk % plan.KEEP == 0
    assert (division.per_row - 1) * division.chunk < shape[1] <= division.per_row * division.chunk
    programs = shape[0] * division.per_row * -(-shape[2] // division.block)
    assert programs >= H100 * 4 or division.chunk == plan.SHORTEST
    config = plan.Config()
    assert programs <= H100 * (config.fill_backward if backward else config.fill_forward) * 1.1


@pytest.mark.parametrize(("channels", "blocks"), [(1, 1), (16, 1), (32, 1), (33, 1), (130, 3), (384, 6)])
def test_few_channels_need_few_programs(channels, blocks):
    """Of a long sequence, which is split: one program per block of 64 channels or fewer."""
    division = plan.divide(sizes(1, 100000, channels), H100, plan.Config(), backward=False, packed=False)
    assert -(-channels // division.block) == blocks
    assert plan.tile(channels) % division.block == 0


@pytest.mark.parametrize(("channels", "tile"), [(16, 32), (48, 64), (100, 128), (130, 64), (768, 128)])
def test_tiles_waste_little(channels, tile):
    assert plan.tile(channels) == tile


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("shape", [(1, 131072, 512), (64, 512, 768)])
def test_states_do_not_change_the_division(shape, backward):
    """Programs go through the states one after another: more states take more time, not more registers."""
    few = sizes(*shape)
    many = few._replace(d_state=256)
    of = [plan.divide(one, H100, plan.Config(), backward, packed=False) for one in (few, many)]
    assert of[0] == of[1]


@pytest.mark.parametrize("capability", [8, 9, 10, 12])
def test_shipped_configurations_fit_the_kernels(capability):
    config = plan.config(capability)
    for block in plan.BLOCKS:
        for gated in (False, True):
            back, again = plan.steps_back(block, gated)
            assert again % back == 0
            assert plan.KEEP % again == 0
        assert plan.KEEP % plan.steps_forward(block, config) == 0
    assert {config.block, config.back_block} <= set(plan.BLOCKS)


def test_carry_of_many_chunks_is_divided_among_warps():
    assert plan.carry_groups(1) == 1
    assert plan.carry_groups(500) == 8


@pytest.mark.parametrize("steps", [0, 1, 64, 128])
def test_short_rows_are_whole(steps):
    division = plan.divide(sizes(1, steps, 64), H100, plan.Config(), backward=False, packed=False)
    assert (division.per_row, division.chunk) == (1, max(1, steps))


def test_packed_rows_share_the_steps():
    packed = sizes(1, 131072, 256, sequences=20)
    division = plan.divide(packed, H100, plan.Config(), backward=False, packed=True)
    alone = plan.divide(sizes(1, 131072, 256), H100, plan.Config(), backward=False, packed=False)
    assert division.chunk == alone.chunk
    assert plan.slots(packed, True, 1000) == 131 + 20
    assert plan.slots(sizes(3, 1001, 256), False, 1000) == 6


def test_routes_count_as_programs():
    one = plan.divide(sizes(1, 4096, 64), H100, plan.Config(), backward=False, packed=False)
    many = plan.divide(sizes(1, 4096, 64, routes=600), H100, plan.Config(), backward=False, packed=False)
    assert one.split
    assert not many.split


def test_convolution():
    long = ConvSizes(1, 1048576, 1048576, 1, 256, 4, 1)
    division = plan.divide_convolution(long, H100, packed=False)
    assert division.per_row * 2 >= H100 * 8
    assert not plan.divide_convolution(ConvSizes(1, 100, 100, 1, 256, 4, 1), H100, packed=False).split


def test_configuration_from_a_file(monkeypatch, tmp_path):
    file = tmp_path / "config.json"
    monkeypatch.setenv("SEQSSM_TRITON_CONFIG", str(file))
    for content, error in (
        ({"unrol": 2}, "unknown field 'unrol'"),
        ({"unroll": 2}, "unroll is 2"),
        ({"block": 48}, "48"),
    ):
        file.write_text(json.dumps(content))
        plan.config.cache_clear()
        with pytest.raises(ValueError, match=error):
            plan.config(9)
    file.write_text(json.dumps({"unroll": 16}))
    assert plan.config(9) == plan.TABLE[9]._replace(unroll=16)
    plan.config.cache_clear()


def test_unknown_gpus_are_treated_like_the_newest(monkeypatch):
    monkeypatch.delenv("SEQSSM_TRITON_CONFIG", raising=False)
    plan.config.cache_clear()
    assert plan.config(99) == plan.TABLE[max(plan.TABLE)]
    assert plan.config(11) == plan.TABLE[10]
    assert plan.config(7) == plan.TABLE[8]


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="engine='torch'"):
        plan.check_steps(2**31 - 1)


def ssd_sizes(batch=1, steps=4096, sequences=1, head_dim=64, d_state=128):
    return plan.SsdSizes(batch, steps, steps, 1, 8, head_dim, 1, d_state, sequences)


def test_ssd_chunks_are_as_long_as_rows_need():
    assert plan.ssd_chunk(ssd_sizes()) == 64
    assert plan.ssd_chunk(ssd_sizes(batch=4, steps=9, sequences=4)) == 16
    assert plan.ssd_chunk(ssd_sizes(steps=100, sequences=10)) == 16
    assert plan.ssd_chunk(ssd_sizes(steps=0, sequences=0)) == 16


def test_ssd_blocks_are_powers_of_two_from_16():
    for itemsize, backward in ((2, False), (2, True), (4, False), (4, True)):
        large = plan.ssd_block(ssd_sizes(), itemsize, backward)
        assert max(large) <= 64
        assert plan.ssd_block(ssd_sizes(head_dim=1, d_state=3), itemsize, backward) == (16, 16)
        assert plan.ssd_states_of_inputs(large, 128) >= 32


def test_ssd_heads_are_divided_only_to_fill_the_gpu():
    assert plan.ssd_heads_per_part(24, 10_000, 132) == 24
    assert plan.ssd_heads_per_part(24, 1, 132) == 1
    assert plan.ssd_heads_per_part(24, 264, 132) == 12
