"""The only code that reaches into a network: by hooks, never by rewriting it, and without leaving a trace."""

from mixwell.probe.anatomy import Anatomy, Site
from mixwell.probe.capture import Outputs, Probe, Want
from mixwell.probe.views import Views

__all__ = ["Anatomy", "Outputs", "Probe", "Site", "Views", "Want"]
