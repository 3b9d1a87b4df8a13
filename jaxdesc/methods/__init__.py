"""The papers, by name: each entry builds a Method from its Config."""

from jaxdesc.methods import caps, cold, gsf, pump

METHODS = {"pump": pump.build, "caps": caps.build, "cold": cold.build, "gsf": gsf.build}
