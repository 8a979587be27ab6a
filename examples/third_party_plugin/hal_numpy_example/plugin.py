"""A hal backend that runs a few float32 operators in numpy, through onnx's evaluator."""

from collections.abc import Mapping, Sequence

from onnx.reference import ReferenceEvaluator

from hal.backend import Backend, Configuration, Device, Executable, Signature, Support, Tensor
from hal.errors import BackendError, TargetError, UnsupportedGraph
from hal.graph.model import Graph
from hal.hookspecs import hookimpl
from hal.tensor import deliver, host_inputs

OPERATORS = ("Add", "Gemm", "MatMul", "Mul", "Neg", "Relu", "Sigmoid", "Tanh")
YES, NO = Support(True), Support(False, f"numpy_example runs {', '.join(OPERATORS)} of float32 in fp32 only")


class NumpyExecutable(Executable):
    def __init__(self, graph: Graph) -> None:
        self.evaluator: ReferenceEvaluator | None = ReferenceEvaluator(graph.to_proto())
        self._signature = graph.signature

    @property
    def signature(self) -> Signature:
        return self._signature

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        if self.evaluator is None:
            raise BackendError("run after close; compile the graph again")
        arrays = host_inputs(self._signature.inputs, inputs)  # raises InputError for what does not fit
        answers = self.evaluator.run(None, dict(zip(self.evaluator.input_names, arrays, strict=True)))
        return deliver([answer.copy() for answer in answers], outputs)

    def close(self) -> None:
        self.evaluator = None


class NumpyBackend(Backend):
    name = "numpy_example"

    def discover(self) -> Sequence[Device]:
        return [Device(id="cpu:0", name="numpy", kind="cpu", silicon="cpu-0", memory_pool="ram-0")]

    def capability(self, device: Device, graph: Graph, precision: str) -> Mapping[str, Support]:
        known = {name: node for name, node in graph.nodes.items() if node.op_type in OPERATORS}
        fine = {n for n in known if all(str(v.dtype) == "FLOAT" for v in known[n].inputs if v)}
        return {name: YES if name in fine and precision == "fp32" else NO for name in graph.nodes}

    def compile(self, device: Device, graph: Graph, configuration: Configuration) -> Executable:
        if configuration.options:
            raise TargetError(f"unknown options {dict(configuration.options)}; numpy_example has none")
        answers = self.capability(device, graph, configuration.precision).items()
        if refused := [name for name, answer in answers if not answer.yes]:
            raise UnsupportedGraph(f"{graph.name!r}: nodes {', '.join(refused)} cannot run: {NO.reason}")
        return NumpyExecutable(graph)


@hookimpl
def hal_backend() -> Backend:
    return NumpyBackend()
