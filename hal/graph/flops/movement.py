"""Operators that move or make values without arithmetic on them, and those that cannot be counted."""

from __future__ import annotations

from hal.graph.flops.node import OpNode, UnknownCount, enter
from hal.graph.shapes import RANDOM

#: No arithmetic on elements; conversions of type are moves too.
_MOVES = """
    BitCast Cast CastLike CenterCropPad Compress Concat Constant ConstantOfShape DepthToSpace Dropout Expand
    EyeLike Flatten Gather GatherElements GatherND Identity MaxUnpool OneHot Pad Reshape ReverseSequence Shape
    Size Slice SpaceToDepth Split Squeeze TensorScatter Tile Transpose Trilu Unsqueeze ConcatFromSequence
    Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty SequenceErase
    SequenceInsert SequenceLength SplitToSequence
"""

#: Whose work depends on values, or whose arithmetic no definition fixes.
UNCOUNTED: dict[str, str] = {
    "MaxRoiPool": "the size of each region is a value",
    "NonMaxSuppression": "the number of comparisons depends on the boxes",
    "Unique": "the number of comparisons depends on the values",
    **dict.fromkeys(sorted(RANDOM), "the generator is the runtime's choice"),
    **dict.fromkeys(
        ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"), "text"
    ),
    "ImageDecoder": "the work depends on the format",
    **dict.fromkeys(
        ("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"), "made once, not run"
    ),
    "SequenceMap": "runs a graph for each element of a sequence",
}


@enter(_MOVES.split())
def _move(node: OpNode) -> int:
    return 0


@enter(["Scatter", "ScatterElements", "ScatterND"])
def _scatter(node: OpNode) -> int:
    """One operation for each update that is joined with what is there."""
    return 0 if node.text("reduction", "none") == "none" else node.size(2)


@enter(UNCOUNTED)
def _uncounted(node: OpNode) -> int:
    raise UnknownCount(UNCOUNTED[node.op])
