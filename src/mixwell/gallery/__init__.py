"""Pictures of what recipes do to images."""

from mixwell.gallery.act import Shown, act
from mixwell.gallery.sheet import sheet

__all__ = ["Shown", "act", "sheet"]
