"""`OneDelegatePartitioner`: everything that XNNPACK supports in one delegate, where the graph allows it."""

from __future__ import annotations

from collections.abc import Callable

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir.backend.backend_details import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx.passes.infra.partitioner import Partition

# Of the delegate's 17 passes run only the one on linears: the others look for convolutions, pooling, clones and
# the like, which `executorch_graph.prepare` leaves none of, and took a third of the time of the whole lowering.
_PASSES = [CompileSpec("dqlinear_partitioner", b"")]


class OneDelegatePartitioner(XnnpackPartitioner):  # type: ignore[misc]
    """The stock partitioner cuts before linears that share a quantised input, twice a decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.delegation_spec = DelegationSpec(self.delegation_spec.backend_id, _PASSES)  # type: ignore[has-type]

    def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[list[OpOverload], Callable[[fx.Node], bool] | None]:
        """The stock list without its filter, for which the program would be traced twice more."""
        return super().ops_to_not_decompose(ep)[0], None

    def generate_partitions(self, ep: ExportedProgram) -> list[Partition]:
        supported = {node for group in self.get_matched_nodes_from_configs(ep) for node in group}
        if not supported or _leaves_and_returns(ep.graph, supported):
            partitions: list[Partition] = super().generate_partitions(ep)
            return partitions
        return [Partition(id=0, nodes=dict.fromkeys(n for n in ep.graph.nodes if n in supported))]


def _leaves_and_returns(graph: fx.Graph, inside: set[fx.Node]) -> bool:
    """True where a path leads from `inside` out and back: one delegate would depend on itself."""
    after: set[fx.Node] = set()
    for node in graph.nodes:
        if any(source in after for source in node.all_input_nodes):
            if node in inside:
                return True
            after.add(node)
        elif node not in inside and any(source in inside for source in node.all_input_nodes):
            after.add(node)
    return False
