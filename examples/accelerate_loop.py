"""Accelerate: any recipe, also with players and on many processes.

python examples/accelerate_loop.py [--steps 20] [--recipe "amr | cutmix"]
torchrun --nproc-per-node 2 examples/accelerate_loop.py  # with ACCELERATE_USE_CPU=true where there is no GPU
"""

import argparse

import torch
from accelerate import Accelerator

import mixwell
from mixwell.compat.optimizers import optimizers_of
from mixwell.data import Loader, load
from mixwell.nets import create_net

parser = argparse.ArgumentParser(description="Train with a recipe on Accelerate.")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--recipe", default="0.5*amr | 0.5*automix")
parser.add_argument("--model", default="cnn-s")
options = parser.parse_args()

torch.manual_seed(0)
accelerator = Accelerator()
rank, world = accelerator.process_index, accelerator.num_processes
data = load("fashion-mini")
loader = Loader(data.train, batch_size=16, pixels=data.pixels, rank=rank, world=world)
model = create_net(options.model, data.num_classes).to(accelerator.device)
first = next(loader.epoch(0)).to(accelerator.device)
recipe = mixwell.create(options.recipe, data.num_classes).bind(model, first.images).to(accelerator.device)
recipe.use_data(train=lambda: loader.epoch(0))

# One optimiser for the network and what the recipe owns, and those that players such as AMR's bring.
optimizers = optimizers_of(recipe, model, lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9))
optimizers = {turn: accelerator.prepare(optimizer) for turn, optimizer in optimizers.items()}
trainee = accelerator.prepare(mixwell.Trainee(model, recipe))  # the one module that is wrapped
recipe.before_epoch(model)  # at the start of each epoch

for step, batch in zip(range(options.steps), loader.epoch(0), strict=False):
    turn = trainee(batch.to(accelerator.device))  # one call is one turn
    while True:
        optimizers[turn.group].zero_grad()
        accelerator.backward(turn.loss)
        optimizers[turn.group].step()
        accelerator.print(f"step {step}: {turn.group} loss {turn.loss.item():.3f}")
        if turn.last:
            break
        turn = trainee(None)
    recipe.after_step(model)

predictor = recipe.predictor(model).eval()  # what to evaluate and keep
test = next(Loader(data.test, batch_size=500, pixels=data.pixels, shuffle=False).epoch(0)).to(accelerator.device)
with torch.no_grad():
    guess = predictor(recipe.eval_images(test.images)).argmax(1)
accelerator.print(f"{recipe}: accuracy {(guess == test.labels).float().mean():.2f}")
accelerator.end_training()
