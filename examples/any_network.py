"""Cut a network that is no classifier: a segmentation model, with the outputs compared before and after.

python examples/any_network.py
"""

import tempfile

import torch
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import sentei


def main() -> None:
    torch.manual_seed(0)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    x = torch.randn(1, 3, 128, 128)

    graph = sentei.trace(model, x)
    print(graph)
    plan = sentei.uniform(graph, sentei.Budget(macs=0.4, params=0.5))
    small = sentei.cut(model, graph, plan)
    report = sentei.check(model, small, graph, plan, x)
    print(f"{graph.cost().macs:,} -> {graph.cost(plan).macs:,} MACs, max error {report.max_error:.1e}")

    with tempfile.TemporaryDirectory() as folder:
        sentei.save(small, plan, folder)
        fresh = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
        loaded = sentei.load(fresh, folder).eval()
    print("loaded equals saved:", torch.equal(loaded(x)["out"], small(x)["out"]))


if __name__ == "__main__":
    main()
