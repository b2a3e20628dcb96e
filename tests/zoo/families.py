"""The architectures that every cut is proved on: torchvision, and fifty convolutional families of timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn
from torchvision import models
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck

from sentei.models import build_model
from tests.random_networks import randomise

NO_INIT = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
CLASSIFIERS = models.list_models(module=models)
SEGMENTATION = models.list_models(module=models.segmentation)

TIMM = """
convnext_atto convnextv2_atto convmixer_768_32 cspresnet50 cspdarknet53 cs3darknet_s darknet53 densenet121 dla34
dm_nfnet_f0 dpn48b eca_nfnet_l0 edgenext_xx_small efficientnet_b0 efficientnetv2_rw_t ese_vovnet19b_dw
fastvit_t8 fbnetc_100 gernet_s ghostnet_100 hardcorenas_a hgnetv2_b0 hrnet_w18_small inception_next_atto
legacy_seresnet18 lcnet_050 mixnet_s mnasnet_small mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small
mobileone_s0 regnetx_002 regnety_002 repghostnet_050 repvgg_a0 res2net50_14w_8s resnest14d resnetv2_50
rexnet_100 selecsls42 seresnext26d_32x4d skresnet18 spnasnet_100 starnet_s1 tf_efficientnet_lite0 tinynet_e
vovnet39a wide_resnet50_2 xception41
""".split()  # noqa: SIM905  fifty lines would say no more

QUICK = {"resnet18": 64, "sentei:vgg16": 32, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "densenet121": 64,
         "googlenet": 64, "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "mnasnet0_5": 64, "efficientnet_b0": 64,
         "regnet_y_400mf": 64, "timm:convnext_atto": 64, "resnext50_32x4d": 64}  # fmt: skip
"""One model of each family, with an input size that keeps the quick suite quick."""
SHALLOW: dict[str, Callable[[], nn.Module]] = {
    "densenet121": lambda: models.DenseNet(block_config=(3, 3, 3, 3)),
    "shufflenet_v2_x0_5": lambda: models.ShuffleNetV2([2, 2, 2], [24, 48, 96, 192, 1024]),
    "regnet_y_400mf": lambda: models.RegNet(BlockParams.from_init_params(6, 48, 60, 2.09, 8, se_ratio=0.25)),
    "timm:convnext_atto": lambda: timm.create_model("convnext_atto", depths=(1, 1, 2, 1)),
    "resnext50_32x4d": lambda: models.ResNet(Bottleneck, [1, 2, 1, 1], groups=32, width_per_group=4),
}
"""The same with fewer blocks, where they repeat each other; the slow suite takes them whole."""


def build(name: str, size: int | None = None) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A model with random weights that hide nothing, and one image. `sentei:NAME`, `timm:NAME`, else torchvision."""
    torch.manual_seed(0)
    if size is not None and name in SHALLOW:
        model, shape = SHALLOW[name](), (3, size, size)
    elif name.startswith("sentei:"):
        model, shape = build_model(name.removeprefix("sentei:")), (3, 32, 32)
    elif name.startswith("timm:"):
        model = timm.create_model(name.removeprefix("timm:"), pretrained=False)
        shape = model.default_cfg["input_size"]
    else:
        kwargs: dict[str, Any] = {"weights_backbone": None} if name in SEGMENTATION else {}
        model = models.get_model(name, weights=None, **kwargs, **NO_INIT.get(name, {}))
        shape = (3, 299, 299) if name == "inception_v3" else (3, 224, 224)
    if size is not None:
        shape = (3, size, size)
    return reveal(model).eval(), (torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)),)


def reveal(model: nn.Module) -> nn.Module:
    """Initial zeros (last gammas, layer scales, heads) multiply errors away: replace them; keep other weights."""
    fresh = {n: p.detach().clone() for n, p in model.named_parameters()}
    randomise(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and float(fresh[name].std()) > 1e-4:
                p.copy_(fresh[name])
    return model
