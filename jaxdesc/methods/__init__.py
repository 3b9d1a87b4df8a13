"""The papers, by name: each entry builds a Method from its Config."""

from jaxdesc.methods import pump

METHODS = {"pump": pump.build}
