"""Checks an ONNX model as the service does: `python -m compression.loading.onnx FOLDER`; needs Python alone.

Exit status: 0 it would be taken in, 2 it would be refused; says why.
"""

from __future__ import annotations

import sys
from pathlib import Path

from compression.errors import ModelRejected
from compression.loading.onnx.admission import admit_graph
from compression.loading.sources import folder_sources


def main(arguments: list[str]) -> int:
    """The command; gives its exit status."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        found = admit_graph(folder_sources(Path(arguments[0])))
    except (ModelRejected, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    facts = found.inspection
    print(
        f"{found.weights[0]}: {facts['nodes']:,} nodes, {facts['parameters']:,} parameters, opset "
        f"{facts['opset']}, "
        f"{'free' if facts['dynamic_batch'] else 'fixed'} batch"
    )
    for each in facts["unknown_operators"]:
        print(f"not known to the engine: {each['operator']} ({each['domain']}, {each['count']} nodes)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
