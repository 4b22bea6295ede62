"""The peers, each as its users call it: tensors, sessions and output buffers are made outside of what is timed.

A provider lists, for a row of one of its ops, its ways to compute it as (via, make) pairs; make() gives (call, output),
output() the result of the last call as an array [1][heads][rows][head_dim], of linear [tokens][out]. compare.py tries
every way and keeps the fastest that is right.
"""
import ml_dtypes
import numpy

BFLOAT16 = numpy.dtype(ml_dtypes.bfloat16)


class Torch:
    name = "torch"
    ops = ("prefill", "decode", "linear")

    def __init__(self):
        import torch
        self.torch, self.version = torch, torch.__version__
        torch.set_grad_enabled(False)

    def _linear(self, x, w, bias, threads):
        self.torch.set_num_threads(threads)
        result = []

        def call():
            result[:] = [self.torch.nn.functional.linear(x, w, bias)]
        return call, lambda: result[0].numpy()

    def _tensor(self, a):
        if a.dtype == BFLOAT16:
            return self.torch.from_numpy(a.view(numpy.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(a)

    def ways(self, row, q, k, v, threads):
        q, k, v = map(self._tensor, (q, k, v))
        if row.op == "linear":
            yield "nn.functional.linear", lambda: self._linear(q, k, v, threads)
            return
        sdpa = self.torch.nn.functional.scaled_dot_product_attention

        def make(q, shape, **options):
            self.torch.set_num_threads(threads)
            result = []

            def call():
                result[:] = [sdpa(q, k, v, **options)]
            return call, lambda: result[0].float().numpy().reshape(shape)

        options = {"is_causal": row.causal}
        if row.group > 1:
            options["enable_gqa"] = True
        via = f"sdpa({', '.join(f'{key}={value}' for key, value in options.items())})"
        yield via, lambda: make(q, q.shape, **options)
        if row.group > 1 and row.q_len == 1:
            packed = q.reshape(1, row.num_kv_heads, row.group, row.head_dim)
            yield "sdpa, the group's heads packed as query rows by hand", lambda: make(packed, q.shape)


class OnnxRuntime:
    name = "onnxruntime"
    ops = ("prefill", "decode")

    def __init__(self):
        import onnx
        import onnxruntime
        self.onnx, self.ort, self.version = onnx, onnxruntime, onnxruntime.__version__

    def _make(self, threads, node, inputs, output_shape, output, outputs=None):
        """A one-node model with every input and output bound once. outputs maps further outputs to the input whose
        buffer they share (a cache)."""
        from onnx import TensorProto, helper
        outputs = outputs or {}
        types = {numpy.dtype("float32"): TensorProto.FLOAT, numpy.dtype("float16"): TensorProto.FLOAT16,
                 BFLOAT16: TensorProto.BFLOAT16, numpy.dtype("int32"): TensorProto.INT32}
        dtype = next(iter(inputs.values())).dtype
        declare = helper.make_tensor_value_info
        graph = helper.make_graph(
            [node], "peer", [declare(name, types[a.dtype], a.shape) for name, a in inputs.items()],
            [declare("output", types[dtype], output_shape)] +
            [declare(name, types[dtype], inputs[source].shape) for name, source in outputs.items()])
        model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 23),
                                                                       helper.make_opsetid("com.microsoft", 1)])
        options = self.ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        session = self.ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = {name: self._value(a, types[a.dtype]) for name, a in inputs.items()}
        values["output"] = self._value(numpy.zeros(output_shape, dtype), types[dtype])
        binding = session.io_binding()
        for name in inputs:
            binding.bind_ortvalue_input(name, values[name])
        binding.bind_ortvalue_output("output", values["output"])
        for name, source in outputs.items():
            binding.bind_ortvalue_output(name, values[source])
        return lambda: session.run_with_iobinding(binding), lambda: output(values["output"].numpy())

    def _value(self, a, onnx_type):
        if a.dtype == BFLOAT16:
            return self.ort.OrtValue.ortvalue_from_numpy_with_onnx_type(a, onnx_type)
        return self.ort.OrtValue.ortvalue_from_numpy(a)

    def ways(self, row, q, k, v, threads):
        def rows_first(a):  # [B][H][S][D] -> [B][S][H * D], the only layout of the com.microsoft operators' inputs
            return numpy.ascontiguousarray(a.transpose(0, 2, 1, 3)).reshape(1, a.shape[2], -1)

        def heads_first(a):
            return a.reshape(1, row.q_len, row.num_q_heads, -1).transpose(0, 2, 1, 3)

        make_node = self.onnx.helper.make_node

        def multi_head_attention():
            node = make_node("MultiHeadAttention", ["query", "key", "value"], ["output"], domain="com.microsoft",
                             num_heads=row.num_q_heads, unidirectional=int(row.causal))
            inputs = {"query": rows_first(q), "key": rows_first(k), "value": rows_first(v)}
            return self._make(threads, node, inputs, inputs["query"].shape, heads_first)

        def attention_23():
            node = make_node("Attention", ["query", "key", "value"], ["output"], is_causal=int(row.causal))
            return self._make(threads, node, {"query": q, "key": k, "value": v}, q.shape, lambda a: a)

        def group_query_attention():
            """The cache is bound as past and present at once, so that nothing but the new rows is written to it."""
            node = make_node("GroupQueryAttention",
                             ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total"],
                             ["output", "present_key", "present_value"], domain="com.microsoft",
                             num_heads=row.num_q_heads, kv_num_heads=row.num_kv_heads)
            new = slice(row.kv_len - row.q_len, row.kv_len)
            inputs = {"query": rows_first(q), "key": rows_first(k[:, :, new]), "value": rows_first(v[:, :, new]),
                      "past_key": k, "past_value": v, "seqlens_k": numpy.array([row.kv_len - 1], numpy.int32),
                      "total": numpy.array(row.kv_len, numpy.int32)}
            return self._make(threads, node, inputs, inputs["query"].shape, heads_first,
                              {"present_key": "past_key", "present_value": "past_value"})

        if row.group == 1:
            yield "com.microsoft.MultiHeadAttention", multi_head_attention
        yield "Attention-23", attention_23
        if row.causal or row.q_len == 1:  # the operator is causal
            yield "com.microsoft.GroupQueryAttention", group_query_attention


class OpenVino:
    name = "openvino"
    ops = ("prefill", "decode")

    def __init__(self):
        import openvino
        import openvino.opset13 as ops
        self.ov, self.graph_ops, self.version = openvino, ops, openvino.__version__.split("-")[0]
        self.core = openvino.Core()

    def _numbers(self, tensor):
        return tensor.data.view(BFLOAT16) if tensor.element_type == self.ov.Type.bf16 else tensor.data

    def ways(self, row, q, k, v, threads):
        ops = self.graph_ops
        element = {"f32": self.ov.Type.f32, "bf16": self.ov.Type.bf16, "f16": self.ov.Type.f16}[row.dtype]

        def make(q, graph, static):
            arrays = {"q": q, "k": k, "v": v}
            shapes = [a.shape if static else [-1, a.shape[1], -1, a.shape[3]] for a in arrays.values()]
            parameters = [ops.parameter(shape, element, name=name) for name, shape in zip(arrays, shapes)]
            model = self.ov.Model([graph(*parameters)], parameters, "peer")
            compiled = self.core.compile_model(model, "CPU", {
                "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": row.dtype,  # of f32 it would take bf16 where the CPU has it
                "ENABLE_CPU_PINNING": False})  # the calling thread is fovea's as well
            request = compiled.create_infer_request()
            for i, a in enumerate(arrays.values()):
                bits = a.view(numpy.uint16) if a.dtype == BFLOAT16 else a
                request.set_input_tensor(i, self.ov.Tensor(bits, list(a.shape), element))
            shape = (1, row.num_q_heads, row.q_len, row.head_dim)
            return request.infer, lambda: self._numbers(request.get_output_tensor(0)).reshape(shape)

        def sdpa(q, k, v):
            return ops.scaled_dot_product_attention(q, k, v, causal=row.causal)

        def repeated(q, k, v):
            def repeat(x):
                shape = [1, row.num_kv_heads, row.group, row.kv_len, row.head_dim]
                wide = ops.broadcast(ops.unsqueeze(x, ops.constant(2)), ops.constant(shape), "BIDIRECTIONAL")
                return ops.reshape(wide, ops.constant([1, row.num_q_heads, row.kv_len, row.head_dim]), False)
            return sdpa(q, repeat(k), repeat(v))

        graphs = [("", q, repeated if row.group > 1 else sdpa)]
        if row.group > 1 and row.q_len == 1:
            packed = q.reshape(1, row.num_kv_heads, row.group, row.head_dim)
            graphs.append((", the group's heads packed as query rows by hand", packed, sdpa))
        # Both run as a fused "Subgraph" of the CPU plugin, but not the same one.
        for note, query, graph in graphs:
            for static in (True, False):
                yield (f"ScaledDotProductAttention-13, {'static' if static else 'dynamic'} shapes{note}",
                       lambda query=query, graph=graph, static=static: make(query, graph, static))


ALL = {provider.name: provider for provider in (Torch, OnnxRuntime, OpenVino)}
