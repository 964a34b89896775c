# ruff: noqa: E501 (programs are printed one instruction a line)
"""Programs whose work is known: written by hand, or compiled here from a few lines."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spatialllm_jax.parallel.mesh import make_mesh
from spatialllm_jax.planning import hlo, work

# One all-gather before a loop of 5 and, in its body, a reduce-scatter, a dot and a conditional whose first branch
# permutes; every way to write groups, asynchronous and not.
PROGRAM = """
HloModule hand_made, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%branch_yes (p: f32[16,16]) -> f32[16,16] {
  %p = f32[16,16]{1,0} parameter(0)
  ROOT %moved = f32[16,16]{1,0} collective-permute(%p), channel_id=7, source_target_pairs={{0,1},{1,0}}
}

%branch_no (p.1: f32[16,16]) -> f32[16,16] {
  ROOT %p.1 = f32[16,16]{1,0} parameter(0)
}

%fused_slice (q: f32[5,16,16], i: s32[]) -> f32[16,16] {
  %q = f32[5,16,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,16,16]{2,1,0} dynamic-slice(%q, %i, %zero, %zero), dynamic_slice_sizes={1,16,16}
  ROOT %flat = f32[16,16]{1,0} bitcast(%one)
}

%body (s: (s32[], f32[16,16], f32[5,16,16])) -> (s32[], f32[16,16], f32[5,16,16]) {
  %s = (s32[], f32[16,16]{1,0}, f32[5,16,16]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %x = f32[16,16]{1,0} get-tuple-element(%s), index=1
  %w = f32[5,16,16]{2,1,0} get-tuple-element(%s), index=2
  %layer = f32[16,16]{1,0} fusion(%w, %n), kind=kLoop, calls=%fused_slice
  %y = f32[16,16]{1,0} dot(%x, %layer), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %part = f32[4,16]{1,0} reduce-scatter(%y), channel_id=5, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
  %flag = pred[] constant(true)
  %z = f32[16,16]{1,0} conditional(%flag, %y, %y), true_computation=%branch_yes, false_computation=%branch_no
  %up = s32[] constant(1)
  %m = s32[] add(%n, %up)
  ROOT %t = (s32[], f32[16,16]{1,0}, f32[5,16,16]{2,1,0}) tuple(%m, %z, %w)
}

%condition (s.1: (s32[], f32[16,16], f32[5,16,16])) -> pred[] {
  %s.1 = (s32[], f32[16,16]{1,0}, f32[5,16,16]{2,1,0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%s.1), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%n.1, %limit), direction=LT
}

ENTRY %main (x0: bf16[16,2], w0: f32[5,16,16]) -> f32[16,16] {
  %x0 = bf16[16,2]{1,0:T(8,128)(2,1)} parameter(0)
  %w0 = f32[5,16,16]{2,1,0} parameter(1)
  %gather = ((bf16[16,2]{1,0}), (bf16[16,16]{1,0})) all-gather-start(%x0), channel_id=1, replica_groups=mesh['a'=8,'b'=1] {'a'}, dimensions={1}
  %gathered = bf16[16,16]{1,0} all-gather-done(%gather)
  %x1 = f32[16,16]{1,0} convert(%gathered)
  %total = f32[16,16]{1,0} all-reduce(%x1), channel_id=2, replica_groups=[4,2]<=[8], to_apply=%add
  %start = s32[] constant(0)
  %state = (s32[], f32[16,16]{1,0}, f32[5,16,16]{2,1,0}) tuple(%start, %total, %w0)
  %loop = (s32[], f32[16,16]{1,0}, f32[5,16,16]{2,1,0}) while(%state), condition=%condition, body=%body
  ROOT %out = f32[16,16]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_of_a_program_made_by_hand():
    found = work.step_work(hlo.parse(PROGRAM), devices=8)
    square = 16 * 16 * 4
    assert found.collectives() == {
        "all-gather": {"number": 1, "bytes": 16 * 16 * 2, "sent": 16 * 16 * 2 * 7 / 8},
        "all-reduce": {"number": 1, "bytes": square, "sent": 2 * square / 2},
        "collective-permute": {"number": 5, "bytes": 5 * square, "sent": 5 * square},
        "reduce-scatter": {"number": 5, "bytes": 5 * square, "sent": 5 * square * 3 / 4}}
    assert found.flops == 5 * 2 * 16**3 and not found.unknown_loops


def test_a_fusion_that_slices_reads_the_slice():
    found = {one.name: one for one in work.step_work(hlo.parse(PROGRAM), devices=8).work}
    assert found["layer"].bytes == 2 * 16 * 16 * 4 + 4 and found["layer"].times == 5      # with the index


def test_loops_without_a_known_length_are_named():
    text = PROGRAM.replace("direction=LT", "direction=NE")
    assert work.step_work(hlo.parse(text), devices=8).unknown_loops == ("loop",)
    unrolled = PROGRAM.replace("%up = s32[] constant(1)", "%up = s32[] constant(2)")
    assert work.step_work(hlo.parse(unrolled), devices=8).flops == 3 * 2 * 16**3      # 0, 2, 4
    told = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert work.step_work(hlo.parse(told), devices=8).flops == 3 * 2 * 16**3


def test_parts_of_one_collective_count_once():
    twice = PROGRAM.replace("  %gathered =", "  %again = bf16[16,16]{1,0} all-gather(%x0), channel_id=1, "
                            "replica_groups=[1,8]<=[8], dimensions={1}\n  %gathered =")
    assert work.step_work(hlo.parse(twice), devices=8).collectives()["all-gather"]["number"] == 1


def test_batched_products_written_as_convolutions_count_once():
    """How TPUs write a product over a batch of 6: the window is as long as the batch and meets one element of it."""
    text = """
ENTRY %main (a: bf16[6,8,16], b: bf16[6,16,4]) -> bf16[6,8,4] {
  %a = bf16[6,8,16]{2,1,0} parameter(0)
  %b = bf16[6,16,4]{2,1,0} parameter(1)
  ROOT %c = bf16[6,8,4]{2,1,0} convolution(%a, %b), window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0bf_0io->0bf
}
"""
    assert work.step_work(hlo.parse(text), devices=1).flops == 2 * 6 * 8 * 16 * 4
    image = """
ENTRY %main (a: f32[2,9,9,3], b: f32[3,3,3,5]) -> f32[2,9,9,5] {
  %a = f32[2,9,9,3]{3,2,1,0} parameter(0)
  %b = f32[3,3,3,5]{3,2,1,0} parameter(1)
  ROOT %c = f32[2,9,9,5]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}
"""
    assert work.step_work(hlo.parse(image), devices=1).flops == 2 * 2 * (7 * 3 + 2 * 2) ** 2 * 3 * 5


@pytest.mark.parametrize("line, kernel, products", [
    ('custom-call(%q, %k), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit/flash_forward"}', True, 2),
    ('custom-call(%q, %k), custom_call_target="__cudnn$fmhaSoftmaxBackward"', True, 5),
    ('custom-call(%q, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit/mystery"}', False, 0)])
def test_attention_kernels_count_by_formula_and_others_are_named(line, kernel, products):
    text = f"""
ENTRY %main (q: bf16[2,4,64,8], k: bf16[2,2,64,8]) -> bf16[2,4,64,8] {{
  %q = bf16[2,4,64,8]{{3,2,1,0}} parameter(0)
  %k = bf16[2,2,64,8]{{3,2,1,0}} parameter(1)
  ROOT %o = bf16[2,4,64,8]{{3,2,1,0}} {line}
}}
"""
    found = work.step_work(hlo.parse(text), devices=1, attention_length=64)
    assert found.flops == products * 2 * 64 * 64 * 8 * 4 * 2 / 2
    assert bool(found.unknown_kernels) is not kernel
    # Images of 64 patches beside rows of another length: nothing hides the later patches.
    assert work.step_work(hlo.parse(text), devices=1, attention_length=128).flops == 2 * found.flops


@pytest.mark.parametrize("groups, size", [
    ("replica_groups=mesh['x'=4,'y'=2] {'x','y'}", 8), ("replica_groups=mesh['x'=4,'y'=2] {'y'}", 2),
    ("replica_groups=mesh['x'=8] {'x':(2)4}", 4), ("replica_groups=[2,4]<=[2,4]T(1,0)", 4),
    ("replica_groups={{0,2},{1,3}}", 2), ("replica_groups={}", 8)])
def test_group_sizes(groups, size):
    line = hlo.Instruction("c", "all-reduce", (), (), {}, groups, False, "")
    assert work.group_size(line, 8) == size


def test_a_sharded_scan_compiled_here():
    """What XLA really prints: layers gathered one by one, five products of 2 x 8 x 16 x 16 on each of 8 devices."""
    mesh = make_mesh(1, 8, 1)
    put = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    layers = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=put(None, "fsdp", None))
    x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=put("fsdp", None))

    def run(layers, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(jax.lax.with_sharding_constraint(h @ w, put("fsdp", None))), None),
                            x, layers)[0]

    with jax.set_mesh(mesh):
        text = jax.jit(run).lower(layers, x).compile().as_text()
    found = work.step_work(hlo.parse(text), devices=8)
    assert found.flops == 5 * 2 * 8 * 16 * 16
    gathers = found.collectives()["all-gather"]
    # XLA may gather layer by layer or all at once; the bytes are the same.
    assert gathers["bytes"] == 5 * 16 * 16 * 4 and gathers["sent"] == gathers["bytes"] * 7 / 8
