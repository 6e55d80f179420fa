"""Recipes in other people's training loops: adapters for timm, torchvision, Lightning and Hugging Face's Trainer.

`import mixwell` imports none of them. Each adapter is a module of its own, which imports its framework.
"""
