"""Pictures of what recipes do to images, and of which methods go together."""

from mixwell.gallery.act import Shown, act
from mixwell.gallery.matrix import matrix
from mixwell.gallery.sheet import sheet

__all__ = ["Shown", "act", "matrix", "sheet"]
