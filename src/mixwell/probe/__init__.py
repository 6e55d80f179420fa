"""The only code that reaches into a network: by hooks, never by rewriting it, and without leaving a trace."""

from mixwell.probe.anatomy import Anatomy, Site
from mixwell.probe.capture import Act, Edit, Outputs, Probe, Want
from mixwell.probe.views import Views, seen_on_example

__all__ = ["Act", "Anatomy", "Edit", "Outputs", "Probe", "Site", "Views", "Want", "seen_on_example"]
