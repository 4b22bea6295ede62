"""fovea from Python by ctypes alone: attention of 3 queries over 5 keys, compared with a plain evaluation.

    python3 caller.py /path/to/libfovea.so
"""
import ctypes as C
import math
import random
import sys

i32, i64, u64, f32, pointer = C.c_int32, C.c_int64, C.c_uint64, C.c_float, C.c_void_p


class Tensor(C.Structure):
    _fields_ = [("data", pointer), ("dtype", i32), ("reserved", i32), ("stride_batch", i64), ("stride_head", i64),
                ("stride_row", i64), ("stride_col", i64), ("reserved1", i64), ("reserved2", i64)]


def fields(text):
    """'batch q_len: i64' lines, as the structs of fovea.h have them."""
    for line in text.strip().splitlines():
        names, kind = line.split(":")
        for name in names.split():
            yield name, {"i32": i32, "i64": i64, "u64": u64, "f32": f32, "ptr": pointer, "tensor": Tensor}[kind.strip()]


class AttentionParams(C.Structure):
    _fields_ = list(fields("""
        struct_size: u64
        batch num_q_heads num_kv_heads q_len kv_len head_dim v_head_dim: i64
        q k v out lse scores mask bias: tensor
        scores_stage: i32
        scale logits_soft_cap: f32
        causal q_align mask_align: i32
        q_offset: i64
        q_offsets: ptr
        window_left window_right mask_kv_len: i64
        mask_offsets alibi_slopes: ptr
        alibi_stride_batch: i64
        sinks q_lens kv_lens cu_seqlens_q cu_seqlens_kv: ptr
        total_q total_kv: i64
        block_table: ptr
        block_table_stride num_pages page_size: i64
        q_positions kv_positions: ptr
        q_positions_stride kv_positions_stride: i64
        k_scale v_scale k_channel_scale: tensor
        dropout_p: f32
        reserved: i32
        dropout_seed dropout_offset: u64"""))


def load(path):
    lib = C.CDLL(path)
    lib.fovea_last_error.restype = lib.fovea_version_str.restype = C.c_char_p
    lib.fovea_tensor_bhsd.restype = Tensor
    lib.fovea_tensor_bhsd.argtypes = [pointer, i32, i64, i64, i64]
    lib.fovea_attention_params_init.argtypes = [C.POINTER(AttentionParams), C.c_size_t]
    lib.fovea_attention_forward.argtypes = [C.POINTER(AttentionParams), pointer]
    return lib


def main():
    lib = load(sys.argv[1])
    queries, keys, dim = 3, 5, 4
    draw = random.Random(1)
    q, k, v = ([draw.uniform(-1, 1) for _ in range(rows * dim)] for rows in (queries, keys, keys))
    arrays = [(f32 * len(values))(*values) for values in (q, k, v, [0.0] * len(q))]

    params = AttentionParams()
    if lib.fovea_attention_params_init(params, C.sizeof(params)) != 0:
        sys.exit(lib.fovea_last_error().decode())
    params.batch = params.num_q_heads = params.num_kv_heads = 1
    params.q_len, params.kv_len, params.head_dim = queries, keys, dim
    for name, array in zip(("q", "k", "v", "out"), arrays):
        setattr(params, name, lib.fovea_tensor_bhsd(array, 1, 1, len(array) // dim, dim))  # 1 = FOVEA_F32
    if lib.fovea_attention_forward(params, None) != 0:
        sys.exit(lib.fovea_last_error().decode())

    for i in range(queries):
        scores = [sum(q[i * dim + c] * k[j * dim + c] for c in range(dim)) / math.sqrt(dim) for j in range(keys)]
        weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        for c in range(dim):
            want = sum(weights[j] * v[j * dim + c] for j in range(keys))
            got = arrays[3][i * dim + c]
            if not abs(got - want) < 1e-6:
                sys.exit(f"out[{i}][{c}] = {got}, {want} is wanted")
    print(f"fovea {lib.fovea_version_str().decode()} from Python: right")


if __name__ == "__main__":
    main()
