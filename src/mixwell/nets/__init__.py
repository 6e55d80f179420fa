"""Networks: CIFAR-style and CPU-sized ones of our own, timm's and torchvision's by name."""

from mixwell.nets.cnn_s import CNNS
from mixwell.nets.factory import create_net, nets
from mixwell.nets.preact_resnet import PreActResNet
from mixwell.nets.vit_s import vit_s
from mixwell.nets.wide_resnet import WideResNet

__all__ = ["CNNS", "PreActResNet", "WideResNet", "create_net", "nets", "vit_s"]
