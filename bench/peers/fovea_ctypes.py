"""The part of include/fovea/fovea.h that the peers' programs call, by ctypes and the standard library alone."""
import ctypes
import math
import pathlib
import re
from ctypes import (POINTER, byref, c_char, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64,
                    c_void_p)

REPO = pathlib.Path(__file__).resolve().parents[2]
F32 = 1
DTYPES = {"float32": F32, "bfloat16": 2, "float16": 3, "int8": 6}  # by NumPy's names


class Tensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int32), ("reserved", c_int32), ("stride_batch", c_int64),
                ("stride_head", c_int64), ("stride_row", c_int64), ("stride_col", c_int64), ("reserved1", c_int64),
                ("reserved2", c_int64)]


class AttentionParams(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_uint64), ("batch", c_int64), ("num_q_heads", c_int64), ("num_kv_heads", c_int64),
        ("q_len", c_int64), ("kv_len", c_int64), ("head_dim", c_int64), ("v_head_dim", c_int64),
        ("q", Tensor), ("k", Tensor), ("v", Tensor), ("out", Tensor), ("lse", Tensor), ("scores", Tensor),
        ("mask", Tensor), ("bias", Tensor),
        ("scores_stage", c_int32), ("scale", c_float), ("logits_soft_cap", c_float), ("causal", c_int32),
        ("q_align", c_int32), ("mask_align", c_int32), ("q_offset", c_int64), ("q_offsets", c_void_p),
        ("window_left", c_int64), ("window_right", c_int64), ("mask_kv_len", c_int64), ("mask_offsets", c_void_p),
        ("alibi_slopes", c_void_p), ("alibi_stride_batch", c_int64), ("sinks", c_void_p),
        ("q_lens", c_void_p), ("kv_lens", c_void_p), ("cu_seqlens_q", c_void_p), ("cu_seqlens_kv", c_void_p),
        ("total_q", c_int64), ("total_kv", c_int64),
        ("block_table", c_void_p), ("block_table_stride", c_int64), ("num_pages", c_int64), ("page_size", c_int64),
        ("q_positions", c_void_p), ("kv_positions", c_void_p), ("q_positions_stride", c_int64),
        ("kv_positions_stride", c_int64),
        ("k_scale", Tensor), ("v_scale", Tensor), ("k_channel_scale", Tensor),
        ("dropout_p", c_float), ("reserved", c_int32), ("dropout_seed", c_uint64), ("dropout_offset", c_uint64)]


class Exec(ctypes.Structure):
    _fields_ = [("struct_size", c_uint64), ("num_threads", c_int32), ("flags", c_uint32), ("parallel_for", c_void_p),
                ("parallel_for_ctx", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_size_t),
                ("error_text", c_void_p), ("error_capacity", c_size_t)]


class LinearParams(ctypes.Structure):
    _fields_ = [("struct_size", c_uint64), ("tokens", c_int64), ("in_features", c_int64), ("out_features", c_int64),
                ("x", Tensor), ("w", Tensor), ("bias", Tensor), ("y", Tensor)]


class AttentionInfo(ctypes.Structure):
    _fields_ = [("struct_size", c_uint64), ("target", c_char * 32), ("kernels", c_char * 160),
                ("conversions", c_char * 64), ("num_threads", c_int32), ("phases", c_int32), ("tasks", c_int64),
                ("workspace_bytes", c_uint64), ("flop", c_double), ("flop_executed", c_double), ("bytes", c_double)]


STRUCTS = {"fovea_tensor": Tensor, "fovea_attention_params": AttentionParams, "fovea_exec": Exec,
           "fovea_attention_info": AttentionInfo, "fovea_linear_params": LinearParams}


def check_layout(path=REPO / "tests/abi_layout.txt"):
    """Every offset of the mirrors above against the recorded layout that the library's own tests hold."""
    struct = None
    for line in path.read_text().splitlines():
        if head := re.match(r"struct (\w+): size (\d+)", line):
            struct = STRUCTS.get(head[1])
            assert struct is None or ctypes.sizeof(struct) == int(head[2]), line
        elif struct and (field := re.match(r" +(\d+)  .*?(\w+)(?:\[\d+\])?: (\d+) bytes", line)):
            mirror = getattr(struct, field[2])
            assert (mirror.offset, mirror.size) == (int(field[1]), int(field[3])), f"{struct.__name__}: {line}"


def newest_library():
    built = sorted(REPO.glob("build*/lib/libfovea.so"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise FileNotFoundError(f"no build*/lib/libfovea.so below {REPO}: build the project, or give --library")
    return built[-1]


class Fovea:
    """A loaded library: the given one, or the newest below the repository's build directories."""

    def __init__(self, path=None):
        self.path = pathlib.Path(path or newest_library()).resolve()
        self.lib = ctypes.CDLL(str(self.path))
        self.lib.fovea_last_error.restype = c_char_p
        self.lib.fovea_version_str.restype = c_char_p
        self.lib.fovea_tensor_bhsd.restype = Tensor
        self.lib.fovea_tensor_bhsd.argtypes = [c_void_p, c_int32, c_int64, c_int64, c_int64]
        for init in ("fovea_attention_params_init", "fovea_exec_init", "fovea_attention_info_init",
                     "fovea_linear_params_init"):
            getattr(self.lib, init).argtypes = [c_void_p, c_size_t]
        self.lib.fovea_attention_workspace_size.argtypes = [POINTER(AttentionParams), POINTER(Exec), POINTER(c_size_t)]
        self.lib.fovea_attention_describe.argtypes = [POINTER(AttentionParams), POINTER(Exec), POINTER(AttentionInfo)]
        self.lib.fovea_attention_forward.argtypes = [POINTER(AttentionParams), POINTER(Exec)]
        self.lib.fovea_linear_workspace_size.argtypes = [POINTER(LinearParams), POINTER(Exec), POINTER(c_size_t)]
        self.lib.fovea_linear.argtypes = [POINTER(LinearParams), POINTER(Exec)]
        self._check_params()

    def check(self, status):
        if status:
            raise RuntimeError(self.lib.fovea_last_error().decode())

    def init(self, struct):
        value = struct()
        name = {AttentionParams: "attention_params", Exec: "exec", AttentionInfo: "attention_info",
                LinearParams: "linear_params"}[struct]
        self.check(getattr(self.lib, f"fovea_{name}_init")(byref(value), ctypes.sizeof(struct)))
        return value

    def _check_params(self):
        """init writes struct_size and the defaults where the mirror has them and zeroes the rest; a mirror shorter than
        the library's struct is refused by every call."""
        size = ctypes.sizeof(AttentionParams)
        params = AttentionParams()
        ctypes.memset(byref(params), 0xff, size)
        self.check(self.lib.fovea_attention_params_init(byref(params), size))
        assert params.struct_size == size and math.isnan(params.scale), "fovea_attention_params differs from the mirror"
        assert params.window_left == params.window_right == -1, "fovea_attention_params differs from the mirror"
        params.struct_size = params.window_left = params.window_right = 0
        params.scale = 0
        assert not any(bytes(params)), "fovea_attention_params differs from the mirror"
        params = self.init(AttentionParams)
        params.batch = params.num_q_heads = params.num_kv_heads = params.head_dim = 1
        params.q = params.k = params.v = params.out = self.lib.fovea_tensor_bhsd(None, F32, 1, 0, 1)
        self.check(self.lib.fovea_attention_workspace_size(params, None, byref(c_size_t())))

    def version(self):
        return self.lib.fovea_version_str().decode()

    def target(self):
        name = c_char_p()
        self.check(self.lib.fovea_get_target(byref(name), None))
        return name.value.decode()

    def attention(self, q, k, v, out, causal=False, num_threads=0, kv_step=None):
        """A Call over [batch][heads][rows][head_dim] arrays (NumPy's f32, f16, int8, ml_dtypes' bf16).

        kv_step: the scale of every row of int8 k and v."""
        return Call(self, q, k, v, out, causal, num_threads, kv_step)

    def linear(self, x, w, bias, y, num_threads=0):
        """A LinearCall: y = x w^T + bias over f32 arrays [tokens][in], [out][in], [out], [tokens][out]."""
        return LinearCall(self, x, w, bias, y, num_threads)


class LinearCall:
    """One prepared projection with a workspace of its own. The arrays stay referenced."""

    def __init__(self, fovea, x, w, bias, y, num_threads):
        self.fovea, self.arrays = fovea, (x, w, bias, y)
        self.params, self.exec = fovea.init(LinearParams), fovea.init(Exec)
        p = self.params
        p.tokens, p.in_features, p.out_features = *x.shape, w.shape[0]
        p.x, p.w, p.bias, p.y = (fovea.lib.fovea_tensor_bhsd(a.ctypes.data, F32, 1, a.size // a.shape[-1], a.shape[-1])
                                 for a in self.arrays)
        self.exec.num_threads = num_threads
        size = c_size_t()
        fovea.check(fovea.lib.fovea_linear_workspace_size(p, self.exec, byref(size)))
        self.workspace = ctypes.create_string_buffer(size.value)
        self.exec.workspace, self.exec.workspace_bytes = ctypes.addressof(self.workspace), size.value
        self._refs = byref(p), byref(self.exec)

    def __call__(self):
        if self.fovea.lib.fovea_linear(*self._refs):
            self.fovea.check(1)


class Call:
    """One prepared attention with a workspace of its own: call it as often as wanted. The arrays stay referenced."""

    def __init__(self, fovea, q, k, v, out, causal, num_threads, kv_step):
        self.fovea, self.arrays = fovea, (q, k, v, out)
        self.params, self.exec = fovea.init(AttentionParams), fovea.init(Exec)
        p = self.params
        p.batch, p.num_q_heads, p.q_len, p.head_dim = q.shape
        p.num_kv_heads, p.kv_len, p.v_head_dim, p.causal = k.shape[1], k.shape[2], v.shape[3], causal
        p.q, p.k, p.v, p.out = (fovea.lib.fovea_tensor_bhsd(a.ctypes.data, DTYPES[str(a.dtype)], *a.shape[1:])
                                for a in self.arrays)
        if kv_step:
            rows = k.shape[1] * k.shape[2]
            self.steps = (c_float * rows)(*[kv_step] * rows)
            steps = ctypes.addressof(self.steps)
            p.k_scale = p.v_scale = fovea.lib.fovea_tensor_bhsd(steps, F32, k.shape[1], k.shape[2], 1)
        self.exec.num_threads = num_threads
        size = c_size_t()
        fovea.check(fovea.lib.fovea_attention_workspace_size(p, self.exec, byref(size)))
        self.workspace = ctypes.create_string_buffer(size.value)
        self.exec.workspace, self.exec.workspace_bytes = ctypes.addressof(self.workspace), size.value
        self._refs = byref(p), byref(self.exec)
        self._forward = fovea.lib.fovea_attention_forward

    def __call__(self):
        if self._forward(*self._refs):
            self.fovea.check(1)

    def describe(self):
        info = self.fovea.init(AttentionInfo)
        self.fovea.check(self.fovea.lib.fovea_attention_describe(self.params, self.exec, byref(info)))
        return info
