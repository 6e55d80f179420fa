"""Pictures of what recipes do to images, and of which methods go together."""

from mixwell.gallery.act import Shown, act
from mixwell.gallery.images import Pictures, photographs, read_pictures
from mixwell.gallery.make import Watcher, gallery
from mixwell.gallery.matrix import matrix
from mixwell.gallery.sheet import sheet

__all__ = ["Pictures", "Shown", "Watcher", "act", "gallery", "matrix", "photographs", "read_pictures", "sheet"]
