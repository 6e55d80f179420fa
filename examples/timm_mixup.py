"""timm's training loop in miniature; one import decides whose Mixup it is.

python examples/timm_mixup.py [--steps 20] [--epochs 2] [--recipe fmix]
"""

import argparse

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import accuracy

from mixwell.compat.timm import Mixup  # was: from timm.data import Mixup
from mixwell.data import Loader, load

parser = argparse.ArgumentParser(description="Train a timm network with Mixup and CutMix, or with a recipe.")
parser.add_argument("--steps", type=int, default=20, help="per epoch")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--model", default="resnet10t")
parser.add_argument("--mixup", type=float, default=0.8)
parser.add_argument("--cutmix", type=float, default=1.0)
parser.add_argument("--mixup-mode", default="batch")
parser.add_argument("--mixup-off-epoch", type=int, default=0)
parser.add_argument("--smoothing", type=float, default=0.1)
parser.add_argument("--recipe", help="a recipe in place of both, such as fmix")
args = parser.parse_args()

torch.manual_seed(0)
data = load("fashion-mini")
loader = Loader(data.train, batch_size=32, pixels=data.pixels)
model = timm.create_model(args.model, in_chans=data.shape[0], num_classes=data.num_classes)
optimizer = create_optimizer_v2(model, "lamb", lr=5e-3, weight_decay=0.02)

mixup_args = {
    "mixup_alpha": args.mixup,
    "cutmix_alpha": args.cutmix,
    "mode": args.mixup_mode,
    "label_smoothing": args.smoothing,
    "num_classes": data.num_classes,
}
if args.recipe:
    mixup_args |= {"recipe": args.recipe}
mixup_fn = None
loss_fn = LabelSmoothingCrossEntropy(args.smoothing)
if args.mixup > 0 or args.cutmix > 0:
    mixup_fn, loss_fn = Mixup(**mixup_args), SoftTargetCrossEntropy()

for epoch in range(args.epochs):
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch and mixup_fn is not None:
        mixup_fn.mixup_enabled = False
    model.train()
    for _, batch in zip(range(args.steps), loader.epoch(epoch), strict=False):
        input, target = batch.images, batch.labels
        if mixup_fn is not None:
            input, target = mixup_fn(input, target)
        loss = loss_fn(model(input), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    test = next(Loader(data.test, batch_size=500, pixels=data.pixels, shuffle=False).epoch(0))
    with torch.no_grad():
        (top1,) = accuracy(model(test.images), test.labels)
    print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {top1.item():.1f} %")
